"""The registry's settings: file, environment, flags; what is wrong is named with its place. And rights, which are pure."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tare.api.registry.rights import ALL, Rights, matches
from tare.api.registry.serve import parser
from tare.api.registry.settings import FLAGS, Duration, Rule, Settings, Size, cache_from_flag, load, shown
from tare.api.registry.tokens import parse_scopes
from tare.cli.registryverbs import SERVE
from tare.errors import InvalidArgument

FULL = """
root = "s3://bucket/prefix?endpoint=http://127.0.0.1:9000"
listen = ["0.0.0.0:443", "unix:///run/registry.sock"]
url = "https://registry.example"
state = "/var/lib/state"
mirror = "docker.io"
shutdown-timeout = "1m"
[tls]
cert = "/c.pem"
key = "/k.pem"
[log]
format = "json"
audit = "/var/log/audit"
[access]
htpasswd = "/users"
groups = {team = ["ann", "ben"]}
[[access.rule]]
repositories = ["team/**"]
groups = ["team"]
rights = ["pull", "push"]
[token]
lifetime = "10m"
rotate = "30d"
[[cache]]
prefix = "docker.io"
username = "me"
password-file = "/secret"
ttl = "1h"
size = "20GB"
[quota]
"team/*" = "5GiB"
[[retention]]
repositories = ["ci/**"]
newest = 10
age = "2w"
[schedule]
scrub = "7d"
[[webhook]]
url = "https://hooks.example/x?y=z"
headers = {Authorization = "Bearer secret"}
"""


def test_everything_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text(FULL)
    found = load(file, {}, {})
    assert (found.shutdown_timeout, found.token.rotate, found.quota["team/*"]) == (60, 30 * 86400, 5 << 30)
    assert found.access.rule[0].groups == ("team",) and found.cache[0].size == 20_000_000_000
    assert found.state_directory == Path("/var/lib/state") and found.retention[0].age == 14 * 86400
    assert "secret" not in shown(found).replace("/secret", "") and '"***"' in shown(found)


def test_environment_wins_over_file_and_flags_over_both(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text('root = "/file"\n[log]\nlevel = "info"\naccess = "/file"\n')
    environment = {"TARE_REGISTRY_CONFIG": str(file), "TARE_REGISTRY_LOG_ACCESS": "/environment", "TARE_REGISTRY_ROOT": "/environment"}
    environment |= {"TARE_REGISTRY_LISTEN": "127.0.0.1:1, 127.0.0.1:2", "TARE_REGISTRY_ACCESS_READ_ONLY": "yes"}
    environment |= {"TARE_REGISTRY_TOKEN_FOREIGN_REALM": "https://a", "TARE_REGISTRY_TOKEN_FOREIGN_ISSUER": "a"}
    environment |= {"TARE_REGISTRY_TOKEN_FOREIGN_KEYS": "/k", "TARE_REGISTRY_TOKEN_FOREIGN_SERVICE": "s"}
    found = load(None, environment, {"root": "/flag"}, [cache_from_flag("quay.io"), cache_from_flag("hub=docker.io")])
    assert (found.root, found.log.access, found.log.level) == ("/flag", "/environment", "info")
    assert found.listen == ("127.0.0.1:1", "127.0.0.1:2") and found.access.read_only and found.token.enabled is None
    assert found.token.foreign is not None and found.token.foreign.keys == Path("/k")
    assert [(cache.prefix, cache.upstream) for cache in found.cache] == [("quay.io", "quay.io"), ("hub", "docker.io")]
    assert load(None, {}, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen = 5", "FILE: listen: expected a list, got int"),
        ("colour = 1", "FILE: colour: there is no such key"),
        ("[access]\ncolour = 1", "FILE: access.colour: there is no such key"),
        ("[tls]\ncert = '/c'", "FILE: tls.key: a certificate needs its key"),
        ("[tls]\nclient-ca = '/c'", "FILE: tls.client-ca: it needs a certificate"),
        ("shutdown-timeout = 'soon'", "FILE: shutdown-timeout: 'soon' is no duration"),
        ("quota = {x = 'much'}", "'much' is no size"),
        ("[[access.rule]]\nrepositories = ['a']\nrights = ['pul']", "FILE: access.rule[0].rights[0]: "),
        ("[[access.rule]]\nrepositories = ['a']\nrights = ['pull']", "FILE: access.rule[0]: it is for nobody"),
        ("[[access.rule]]\nrights = ['pull']", "FILE: access.rule[0]: missing required field repositories"),
        ("[[access.rule]]\nrepositories = ['a']\nrights = ['pull']\ngroups = ['x']", "FILE: access.rule[0].groups: there is no group 'x'"),
        ("mirror = 'docker.io'", "FILE: mirror: there is no [[cache]] with the prefix"),
        ("[[cache]]\nprefix = 'UPPER'", "FILE: cache[0].prefix: "),
        ("[[cache]]\nprefix = 'a'\n[[cache]]\nprefix = 'a/b'", "FILE: cache[1].prefix: 'a/b' lies below another cache's prefix"),
        ("[[cache]]\nprefix = 'a'\npassword = 'x'", "FILE: cache[0].username: a password needs a username"),
        ("[[webhook]]\nurl = 'ftp://x'", "FILE: webhook[0].url: 'ftp://x' is no address"),
        ("[[webhook]]\nurl = 'http://x'\nheaders = {'a b' = 'c'}", "FILE: webhook[0].headers: 'a b' cannot be a header"),
        ("[token.foreign]\nrealm = 'https://x'\nissuer = 'x'\nkeys = '/k'", "FILE: token.foreign.service: it is needed"),
        ("[token.foreign]\nrealm = 'https://x'\nissuer = 'x'\nkeys = '/k'\nservice = 's'\nalgorithms = ['HS256']", "'HS256' is not taken"),
        ("[token.foreign]\nrealm = 'https://x'\nissuer = 'x'\nkeys = '/k'\nservice = 's'\nalgorithms = ['none']", "'none' is not taken"),
        ("[token]\nlifetime = 5", "FILE: token.lifetime: clients count on at least 60 seconds"),
        ("url = 'registry'", "FILE: url: 'registry' is no address"),
        ("a = = b", "FILE: Invalid value (at line 1, column 5)"),
        ("a = '\xff", "FILE: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "registry.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument) as error:
        load(file, {}, {})
    assert message.replace("FILE", str(file)) in str(error.value)


def test_wrong_environment_flags_and_files(tmp_path: Path) -> None:
    for environment, message in (
        ({"TARE_REGISTRY_LISTENN": "x"}, "TARE_REGISTRY_LISTENN: there is no such setting"),
        ({"TARE_REGISTRY_ACCESS_READ_ONLY": "maybe"}, "TARE_REGISTRY_ACCESS_READ_ONLY: 'maybe' is neither true nor false"),
        ({"TARE_REGISTRY_SHUTDOWN_TIMEOUT": "soon"}, "TARE_REGISTRY_SHUTDOWN_TIMEOUT: shutdown-timeout: 'soon' is no duration"),
        ({"TARE_REGISTRY_URL": "x"}, "TARE_REGISTRY_URL: url: 'x' is no address"),
        ({"TARE_REGISTRY_CONFIG": str(tmp_path / "none")}, f"cannot read {tmp_path}/none: No such file"),
    ):
        with pytest.raises(InvalidArgument) as error:
            load(None, environment, {})
        assert message in str(error.value)
    with pytest.raises(InvalidArgument, match=r"--log-level: log\.level: "):
        load(None, {}, {"log-level": "loud"})


def test_random_files_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever a file says, the answer is settings or a message with the file's name."""
    draw = random.Random(7)
    file = tmp_path / "r.toml"
    lines = FULL.splitlines()
    values = ["1", "-1", "true", '""', '"x"', "[]", "{}", "[1]", '["\\u0000"]', "1979-05-27", "nan", "[[]]", '{a = {b = "c"}}']
    for _ in range(400):
        changed = list(lines)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(changed))
            name, equals, _rest = changed[place].partition(" = ")
            changed[place] = f"{name} = {draw.choice(values)}" if equals and draw.random() < 0.8 else draw.choice(lines)
        file.write_text("\n".join(changed))
        try:
            load(file, {}, {})
        except InvalidArgument as error:
            assert str(error).startswith(str(file))


def test_command_lines_agree() -> None:
    """Every flag of ``tare registry serve`` is one of the process that it becomes, and the other way round."""
    ours = {flag[0] for flag in SERVE.flags}
    assert ours == {*FLAGS, "cache", "check", "config"}
    for flag in FLAGS:
        assert hasattr(parser().parse_args(["serve"]), flag.replace("-", "_"))


def test_durations_and_sizes() -> None:
    assert [Duration.parse(text) for text in ("90s", "1.5h", 7, "500ms", "1w")] == [90, 5400, 7, 0.5, 604800]
    assert [Size.parse(text) for text in ("1k", "1KiB", "2 MB", 5, "1.5GB")] == [1000, 1024, 2_000_000, 5, 1_500_000_000]
    for text in ("", "s", "-1", True, None, "1y", [1], float("nan")):
        with pytest.raises(ValueError, match="is no duration"):
            Duration.parse(text)
        with pytest.raises(ValueError, match="is no size"):
            Size.parse(text)


@pytest.mark.parametrize(
    ("pattern", "name", "user", "expected"),
    [
        ("**", "a/b/c", "", True),
        ("*", "a", "", True),
        ("*", "a/b", "", False),
        ("team/*", "team/app", "", True),
        ("team/*", "team/app/x", "", False),
        ("team/**", "team/app/x", "", True),
        ("team/**", "teamx/app", "", False),
        ("a.c", "abc", "", False),
        ("home/{user}/**", "home/joe/app", "joe", True),
        ("home/{user}/**", "home/ann/app", "joe", False),
        ("home/{user}/**", "home//app", "", False),
        ("home/{user}/**", "home/ann/app", ".*", False),
        ("{x}", "{x}", "", True),
    ],
)
def test_patterns(pattern: str, name: str, user: str, expected: bool) -> None:
    assert matches([pattern], name, user) is expected


def test_rights() -> None:
    rules = (
        Rule(repositories=("public/**",), rights=("pull",), anonymous=True),
        Rule(repositories=("team/**",), rights=("pull", "push"), groups=("team",)),
        Rule(repositories=("**",), rights=("pull",), users=("*",)),
        Rule(repositories=("team/app",), rights=("delete",), users=("ann",)),
    )
    rights = Rights(rules, {"team": ("ann", "ben")})
    assert rights.of("", "public/x") == {"pull"} and rights.of("", "team/app") == frozenset()
    assert rights.of("ann", "team/app") == ALL and rights.of("ben", "team/app") == {"pull", "push"}
    assert rights.of("eve", "team/app") == {"pull"} and rights.of("*", "team/app") == {"pull"}
    assert rights.for_nobody and not Rights().for_nobody and Rights().of("x", "y") == ALL and Rights().of("", "y") == frozenset()


def test_scopes() -> None:
    found = parse_scopes(
        ["repository:a/b:pull,push repository:c:pull", "repository(plugin):host:5000/x:pull", "repository:a/b:*", "bad", "::"]
    )
    assert found["repository:a/b"] == {"pull", "push", "*"} and found["repository:c"] == {"pull"}
    assert found["repository:host:5000/x"] == {"pull"} and len(found) == 3
    assert len(parse_scopes([f"repository:{number}:pull" for number in range(5000)])) == 256
