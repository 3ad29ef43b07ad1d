"""The builder's front half: a Dockerfile's bytes to instructions, and instructions to stages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.builder import instructions as ins
from tare.builder.errors import DockerfileError
from tare.builder.parser import KEYWORDS, parse, parse_trigger
from tare.builder.stages import BuildGraph, plan

EVERYTHING = rb"""# syntax=docker/dockerfile:1
# escape=\
ARG V=3.19 W
# a comment
FROM --platform=linux/amd64 alpine:${V} AS Base
ENV A=1 B="x y" \
  # a comment within

  C=d
LABEL one two three
RUN --mount=type=cache,target=/root/.cache,sharing=locked --mount=type=bind,from=other,source=/s,target=/x,rw echo hi && \
    echo $A
COPY --from=0 --chown=1:2 --chmod=0644 --link a* "b" /dst/
RUN <<EOF
echo a
  echo b
EOF
COPY <<-"X" <<Y /t/
	lit $A
	X
exp $A
Y
HEALTHCHECK --interval=5m30s --retries=3 CMD ["a", "b"]
ONBUILD RUN make install
SHELL ["/bin/bash", "-c"]
STOPSIGNAL SIGINT
FROM base
ADD --checksum=sha256:abc https://example.com/x.tar.gz /
COPY ["with space", "/y dir/"]
CMD ["sh", "-c", "x"]
ENTRYPOINT exec top -b
EXPOSE 80/tcp 443
VOLUME ["/a", "/b"]
VOLUME /c /d
WORKDIR /a path
USER me
HEALTHCHECK NONE
"""


def parsed(text: str) -> ins.Dockerfile:
    return parse(text.encode())


def one(text: str) -> ins.Instruction:
    return parsed(f"FROM scratch\n{text}").instructions[1]


def test_everything() -> None:
    file = parse(EVERYTHING)
    assert file.directives == {"syntax": "docker/dockerfile:1", "escape": "\\"}
    by_line = {one.line: one for one in file.instructions}
    assert by_line[3] == ins.Arg(3, 3, "ARG V=3.19 W", (("V", "3.19"), ("W", None)))
    assert by_line[5] == ins.From(
        5, 5, "FROM --platform=linux/amd64 alpine:${V} AS Base", image="alpine:${V}", platform="linux/amd64", name="base"
    )
    env = by_line[6]
    assert isinstance(env, ins.Env)
    assert (env.end, env.pairs) == (9, (("A", "1"), ("B", '"x y"'), ("C", "d")))
    label = by_line[10]
    assert isinstance(label, ins.Label)
    assert label.pairs == (("one", "two three"),)
    run = by_line[11]
    assert isinstance(run, ins.Run)
    assert run.command == ins.Command(True, ("echo hi &&     echo $A",))
    assert run.mounts == (
        ins.RunMount("cache", "/root/.cache", sharing="locked"),
        ins.RunMount("bind", "/x", "/s", "other", readonly=False),
    )
    copy = by_line[13]
    assert isinstance(copy, ins.Copy)
    assert (copy.sources, copy.destination) == (("a*", '"b"'), "/dst/")
    assert (copy.from_, copy.chown, copy.chmod, copy.link) == ("0", "1:2", "0644", True)
    script = by_line[14]
    assert isinstance(script, ins.Run)
    assert script.command == ins.Command(True, ("<<EOF",), (ins.Heredoc("EOF", "echo a\n  echo b\n", True),))
    documents = by_line[18]
    assert isinstance(documents, ins.Copy)
    assert (documents.sources, documents.destination) == ((), "/t/")
    assert documents.heredocs == (ins.Heredoc("X", "lit $A\n", False), ins.Heredoc("Y", "exp $A\n", True))
    health = by_line[23]
    assert isinstance(health, ins.Healthcheck)
    assert (health.interval, health.retries, health.command) == (330_000_000_000, 3, ins.Command(False, ("a", "b")))
    onbuild = by_line[24]
    assert isinstance(onbuild, ins.Onbuild)
    assert onbuild.trigger == "RUN make install"
    assert isinstance(onbuild.instruction, ins.Run)
    assert [instruction.keyword for instruction in file.instructions[-11:]] == [
        "FROM", "ADD", "COPY", "CMD", "ENTRYPOINT", "EXPOSE", "VOLUME", "VOLUME", "WORKDIR", "USER", "HEALTHCHECK",
    ]  # fmt: skip
    assert {warning.rule for warning in file.warnings} == {"LegacyKeyValueFormat", "NoEmptyContinuation"}


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ('COPY ["with space", "/y dir/"]', "sources", ("with space",)),
        ("ENTRYPOINT exec top -b", "command", ins.Command(True, ("exec top -b",))),
        ("CMD []", "command", ins.Command(False, ())),
        ("CMD [not json]", "command", ins.Command(True, ("[not json]",))),
        ("cmd echo", "command", ins.Command(True, ("echo",))),
        ("EXPOSE 80/tcp 443", "ports", ("80/tcp", "443")),
        ("VOLUME /c /d", "paths", ("/c", "/d")),
        ("WORKDIR /a path", "path", "/a path"),
        ("ENV key a value with = in it", "pairs", (("key", "a value with = in it"),)),
        ("ENV a=b\\ c d='e f'", "pairs", (("a", "b\\ c"), ("d", "'e f'"))),
        ("RUN\techo  tab", "command", ins.Command(True, ("echo  tab",))),
        ("RUN -- --odd", "command", ins.Command(True, ("-- --odd",))),
        (
            "RUN cat <<A 3<<B\na\nA\nb\nB",
            "command",
            ins.Command(True, ("cat <<A 3<<B",), (ins.Heredoc("A", "a\n", True), ins.Heredoc("B", "b\n", True, 3))),
        ),
        ("RUN cat <<< here", "command", ins.Command(True, ("cat <<< here",))),
        ("ADD --keep-git-dir=true --exclude=*.md x /", "keep_git_dir", True),
        ("COPY --exclude=a --exclude=b --parents x /", "exclude", ("a", "b")),
        ("RUN --network=none --security=insecure x", "network", "none"),
        (
            "RUN --mount=type=secret,id=k,required,mode=0400,uid=3 x",
            "mounts",
            (ins.RunMount("secret", id="k", required=True, mode=0o400, uid="3"),),
        ),
        (
            "RUN --device=v.com/gpu=0,required --device=v.com/gpu x",
            "devices",
            (ins.RunDevice("v.com/gpu=0", True), ins.RunDevice("v.com/gpu")),
        ),
        ("RUN --device=required=1,name=v.com/gpu=* x", "devices", (ins.RunDevice("v.com/gpu=*", True),)),
        ("RUN --mount=type=tmpfs,target=/t,size=2m x", "mounts", (ins.RunMount("tmpfs", "/t", size=2 << 20),)),
    ],
)
def test_one(text: str, field: str, value: object) -> None:
    if text == "RUN -- --odd":
        value = ins.Command(True, ("--odd",))
    assert getattr(one(text), field) == value


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 0, "file with no instructions"),
        ("# only\n", 0, "file with no instructions"),
        ("RUN x", 1, "no build stage in current context"),
        ("ARG a", 1, "no build stage in current context"),
        ("FROM a b", 1, "FROM requires either one or three arguments"),
        ("FROM a AS 1x", 1, 'invalid name for build stage: "1x"'),
        ("FROM a\nRNU x", 2, "unknown instruction: RNU (did you mean RUN?)"),
        ("FROM a\n\nCOPY x", 3, "COPY requires at least two arguments, but only one was provided"),
        ("FROM a\nENV a=b c", 2, 'can\'t find = in "c"'),
        ("FROM a\nENV a", 2, "ENV must have two arguments"),
        ("FROM a\nENV", 2, "ENV requires at least one argument"),
        ("FROM a\nRUN", 2, "RUN requires at least one argument"),
        ("FROM a\nSHELL bash", 2, "SHELL requires the arguments to be in JSON form"),
        ("FROM a\nONBUILD ONBUILD RUN x", 2, "isn't allowed"),
        ("FROM a\nONBUILD FROM x", 2, "FROM isn't allowed as an ONBUILD trigger"),
        ("FROM a\nHEALTHCHECK NONE x", 2, "HEALTHCHECK NONE takes no arguments"),
        ("FROM a\nHEALTHCHECK --interval=x CMD y", 2, "invalid duration"),
        ("FROM a\nHEALTHCHECK TEST y", 2, 'unknown type "TEST" in HEALTHCHECK (try CMD)'),
        ("FROM a\nCOPY --form=b x y", 2, "unknown flag: --form (did you mean --from?)"),
        ("FROM a\nCOPY --from=a --from=b x y", 2, "duplicate flag specified: --from"),
        ("FROM a\nCOPY --chown x y", 2, "missing a value on flag: --chown"),
        ("FROM a\nCMD --x y", 2, "unknown flag: --x"),
        ("FROM a\nCOPY --link --link x y", 2, "duplicate flag specified: --link"),
        ("FROM a\nCOPY --from=$X x y", 2, "variable expansion is not supported for --from"),
        ("FROM a\nRUN --mount=from=$X,target=/y z", 2, "'from' doesn't support variable expansion"),
        ("FROM a\nCOPY x <<EOF\nEOF", 2, "COPY cannot accept a heredoc as a destination"),
        ("FROM a\nADD --checksum=sha256:0 x y z", 2, "checksum can't be specified for multiple sources"),
        ("FROM a\nRUN --mount=type=nfs,target=/x y", 2, "unsupported mount type 'nfs'"),
        ("FROM a\nRUN --device=/dev/fuse y", 2, 'invalid device "/dev/fuse"'),
        ("FROM a\nRUN --device=a.b/c=d,requird=1 y", 2, "unexpected key 'requird' in 'requird=1' (did you mean required?)"),
        ("FROM a\nRUN --device=a.b/c,d y", 2, "invalid field 'd' must be a key=value pair"),
        ("FROM a\nRUN --mount=type=cache y", 2, "target is required"),
        ("FROM a\nRUN --mount=type=cache,tagret=/x y", 2, "unexpected key 'tagret'"),
        ("FROM a\nRUN <<EOF\nx", 2, "unterminated heredoc"),
        ("FROM a\nUSER", 2, "USER requires exactly one argument"),
        ("FROM a\nVOLUME []", 2, "VOLUME requires at least one argument"),
        ("FROM a\nARG =x", 2, "ARG names can not be blank"),
        ("# escape=x\nFROM a", 1, "invalid escape token"),
        ("# syntax=a\n# syntax=b\nFROM a", 2, "only one syntax parser directive can be used"),
    ],
)
def test_errors(text: str, line: int, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parsed(text)
    assert message in str(caught.value)
    assert caught.value.line == line
    if line:
        assert f"line {line}:" in str(caught.value)
        assert text.splitlines()[line - 1] in caught.value.explain()


def test_directives_end_at_the_first_other_line() -> None:
    assert parsed("# comment\n# escape=`\nFROM a\\\n").directives == {}
    assert parsed("#escape = `\nFROM a\nRUN a `\nb").instructions[1].text == "RUN a b"


def test_windows_line_ends_and_byte_order_mark() -> None:
    file = parse(b"\xef\xbb\xbfFROM a\r\nRUN x \\\r\n  y\r\n")
    assert file.instructions[1].text == "RUN x   y"


def test_escaped_escape_does_not_continue() -> None:
    assert parsed("FROM a\nRUN a\\\\\nRUN b").instructions[1].text == "RUN a\\\\"


def test_trigger() -> None:
    assert isinstance(parse_trigger("COPY . /app"), ins.Copy)
    with pytest.raises(DockerfileError):
        parse_trigger("RUN a\nRUN b")


def test_keywords() -> None:
    assert len(KEYWORDS) == 18


# Stages


def graph(text: str, **options: object) -> BuildGraph:
    return plan(parsed(text), **options)  # type: ignore[arg-type]


STAGES = """ARG V=1
ARG IMAGE=debian:${V}
FROM ${IMAGE} AS base
FROM base AS builder
RUN make
FROM alpine AS unused
FROM scratch AS final
COPY --from=builder /a /a
RUN --mount=from=base,target=/b x
COPY --from=busybox /bin/sh /
"""


def test_graph() -> None:
    built = graph(STAGES)
    assert [stage.name for stage in built.stages] == ["base", "builder", "final"]
    assert [stage.base for stage in built.stages] == ["debian:1", "", "scratch"]
    assert built.stages[1].base_stage == 0
    assert built.target.depends_on == {0, 1}
    assert built.stage_of("Builder", 3) == 1
    assert built.stage_of("busybox", 3) is None
    assert built.global_args == {"V": "1", "IMAGE": "debian:1"}


def test_targets_and_arguments() -> None:
    assert [stage.name for stage in graph(STAGES, target="Unused").stages] == ["unused"]
    assert graph(STAGES, target="1").target.name == "builder"
    assert graph(STAGES, build_args={"V": "12"}).stages[0].base == "debian:12"
    assert graph(STAGES, build_args={"IMAGE": "x"}).stages[0].base == "x"
    with pytest.raises(DockerfileError, match='target stage "no" could not be found'):
        graph(STAGES, target="no")


def test_platform_arguments() -> None:
    built = graph("FROM --platform=$BUILDPLATFORM a", platform="linux/arm64/v8")
    assert built.platform_args["TARGETVARIANT"] == "v8"
    assert built.target.platform == built.platform_args["BUILDPLATFORM"]
    assert graph("FROM a", platform="linux/arm64").target.platform == "linux/arm64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM ${NONE}", "should not be blank"),
        ("FROM a\nCOPY --from=0 x y", "invalid stage index 0"),
        ("FROM ${A:?needed}", "A: needed"),
        ("FROM ${A?}", "A: is not allowed to be unset"),
        (
            "FROM a AS one\nCOPY --from=later x y\nFROM b AS later\nFROM one",
            'cannot copy from stage "later", it needs to be defined before current stage "one"',
        ),
        (
            "FROM a AS one\nRUN --mount=from=Later,target=/x y\nFROM b AS later\nFROM one",
            'stage "Later", it needs to be defined before .* "one"',
        ),
        ("FROM a AS me\nCOPY --from=ME x y", "circular dependency detected on stage: me"),
    ],
)
def test_stage_errors(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        graph(text)


def test_a_stage_that_nobody_needs_may_be_wrong() -> None:
    assert [stage.index for stage in graph("FROM a\nCOPY --from=later x y\nCOPY --from=7 x y\nFROM b AS later").stages] == [1]


def test_the_automatic_arguments_can_be_given() -> None:
    built = graph("ARG TARGETARCH\nFROM a-$TARGETARCH-$TARGETSTAGE AS one", build_args={"TARGETARCH": "other"})
    assert built.target.base == "a-other-one"


def test_a_default_is_not_looked_at_when_a_value_is_given() -> None:
    assert graph("ARG A=${NONE:?give A}\nFROM $A", build_args={"A": "x"}).target.base == "x"


@given(st.text(alphabet="FROMRUNCPYEVadf \\\n\"'[]<-=$#{}:,", max_size=120))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        plan(parse(b"FROM a\n" + text.encode()))
    except DockerfileError as error:
        error.explain()
