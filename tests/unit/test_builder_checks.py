"""The checks of a Dockerfile: one example for each rule, and what switches them off."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tare.builder import calls, checks, parser
from tare.builder.checkrules import RULES
from tare.builder.ignore import Patterns
from tare.builder.stages import plan
from tare.errors import InvalidArgument

EXAMPLES = {
    "StageNameCasing": ("FROM a AS Base", "Stage name 'Base' should be lowercase"),
    "FromAsCasing": ("FROM a as base", "'as' and 'FROM' keywords' casing do not match"),
    "NoEmptyContinuation": ("FROM a\nRUN x \\\n\n y", "Empty continuation line"),
    "ConsistentInstructionCasing": ("FROM a\nRUN x\nrun y", "Command 'run' should match the case of the command majority (uppercase)"),
    "DuplicateStageName": ("FROM a AS b\nFROM a AS b", 'Duplicate stage name "b", stage names should be unique'),
    "ReservedStageName": ("FROM a AS scratch", 'Stage name should not use the same name as reserved stage "scratch"'),
    "JSONArgsRecommended": (
        "FROM a\nENTRYPOINT run me",
        "JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals",
    ),
    "MaintainerDeprecated": ("FROM a\nMAINTAINER me", "Maintainer instruction is deprecated in favor of using label"),
    "UndefinedArgInFrom": ("ARG VERSION=1\nFROM a:$VERSIO", "FROM argument 'VERSIO' is not declared (did you mean VERSION?)"),
    "WorkdirRelativePath": ("FROM a\nWORKDIR b", 'Relative workdir "b" can have unexpected results if the base image changes'),
    "UndefinedVar": ("FROM a\nARG SOURCE=x\nCOPY $SOURC y", "Usage of undefined variable '$SOURC' (did you mean $SOURCE?)"),
    "MultipleInstructionsDisallowed": (
        'FROM a\nCMD ["a"]\nCMD ["b"]',
        "Multiple CMD instructions should not be used in the same stage because only the last one will be used",
    ),
    "LegacyKeyValueFormat": ("FROM a\nENV b c", '"ENV key=value" should be used instead of legacy "ENV key value" format'),
    "RedundantTargetPlatform": (
        "FROM --platform=$TARGETPLATFORM a",
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
    ),
    "SecretsUsedInArgOrEnv": ("FROM a\nARG DB_PASSWORD", 'Do not use ARG or ENV instructions for sensitive data (ARG "DB_PASSWORD")'),
    "InvalidDefaultArgInFrom": ("ARG TAG\nFROM a:$TAG", "Default value for ARG a:$TAG results in empty or invalid base image name"),
    "FromPlatformFlagConstDisallowed": (
        "FROM --platform=linux/arm64 a",
        'FROM --platform flag should not use constant value "linux/arm64"',
    ),
    "CopyIgnoredFile": ("FROM a\nCOPY ./hidden /", 'Attempting to Copy file "./hidden" that is excluded by .dockerignore'),
    "ExposeProtoCasing": ("FROM a\nEXPOSE 80/TcP", "Defined protocol '80/TcP' in EXPOSE instruction should be lowercase"),
    "ExposeInvalidFormat": (
        "FROM a\nEXPOSE 80:80",
        "EXPOSE instruction should not define an IP address or host-port mapping, found '80:80'",
    ),
}


def found(text: str, build_args: dict[str, str] | None = None, env: Sequence[str] | None = ()) -> list[checks.Finding]:
    return checks.check(parser.parse(text.encode()), text, build_args or {}, lambda name: env, Patterns("hidden"))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule(rule: str) -> None:
    text, detail = EXAMPLES[rule]
    assert detail in [finding.detail for finding in found(text) if finding.rule == rule]
    assert not [finding for finding in found(f"# check=skip={rule}\n{text}") if finding.rule == rule]


def test_nothing_is_found_in_a_good_file() -> None:
    text = """# syntax=docker/dockerfile:1
ARG TAG=1
FROM --platform=$BUILDPLATFORM a:$TAG AS build
ARG TARGETARCH
WORKDIR /src
ENV WHERE=/out PUBLIC_KEY=k
COPY . ${WHERE}
RUN make $UNDEFINED
FROM --platform=linux/arm64 a AS last-arm64
WORKDIR sub/${OTHER:-x}
COPY --from=build hidden /
SHELL ["/bin/bash", "-c"]
CMD run it
HEALTHCHECK CMD ["x"]
"""
    assert [finding.rule for finding in found(text)] == ["WorkdirRelativePath"]


def test_variables_of_an_unknown_base_are_not_undefined() -> None:
    text = "FROM a\nCOPY $JAVA_HOME /x\n"
    assert not found(text, env=None)
    assert not found(text, env=["JAVA_HOME=/j"])
    assert [finding.rule for finding in found(text)] == ["UndefinedVar"]


def test_descriptions_are_checked_only_when_asked_for() -> None:
    text = "# wrong comment\nFROM a AS base\n"
    assert not found(text)
    (finding,) = found(f"# check=experimental=all\n{text}")
    assert finding.detail == "Comment for FROM should follow the format: `# base <description>`"


def test_the_build_argument_wins_over_the_directive() -> None:
    text = "# check=skip=all\nFROM a AS Base\n"
    assert not found(text)
    assert found(text, {checks.ARGUMENT: "error=true"})
    dockerfile = parser.parse(text.encode())
    assert checks.settings_of(dockerfile, {checks.ARGUMENT: "error=true"}).error
    assert not checks.settings_of(dockerfile, {}).error


@pytest.mark.parametrize("text", ["nonsense", "what=1", "error=perhaps"])
def test_malformed_settings(text: str) -> None:
    with pytest.raises(InvalidArgument):
        checks.Settings.parse(text)


def test_places_and_addresses() -> None:
    text = "FROM a\nCMD a \\\n  b\n"
    (finding,) = found(text)
    assert (finding.line, finding.end) == (2, 3)
    document = calls.lint([finding], text.encode(), "Dockerfile", None)
    warning = document["warnings"][0]
    assert warning["url"] == "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    assert warning["location"]["ranges"] == [{"start": {"line": 2}, "end": {"line": 3}}]
    assert RULES["StageNameCasing"].url.endswith("/stage-name-casing/")


def test_targets_and_outline() -> None:
    text = """# VERSION of the tool
ARG VERSION=1
# build makes it
FROM a AS build
ARG VERSION
ARG HOW=fast
RUN --mount=type=secret,id=token,required=true --mount=type=ssh x
FROM build AS last
"""
    dockerfile = parser.parse(text.encode())
    assert calls.targets(dockerfile, text)["targets"] == [
        {"name": "build", "base": "a", "description": "makes it"},
        {"name": "last", "base": "build", "default": True},
    ]
    outline = calls.outline(plan(dockerfile, {"HOW": "slow"}), text, {"HOW": "slow"})
    assert outline["args"] == [
        {"name": "VERSION", "value": "1", "description": "of the tool"},
        {"name": "HOW", "value": "slow"},
    ]
    assert outline["secrets"] == [{"name": "token", "required": True}]
    assert outline["ssh"] == [{"name": "default"}]


def test_variables_of_mounts_count() -> None:
    dockerfile = "FROM scratch\nARG CACHE=/c\nRUN --mount=type=cache,target=$CACHE/x --mount=type=tmpfs,target=$CACH true\n"
    assert [finding.detail for finding in found(dockerfile)] == ["Usage of undefined variable '$CACH' (did you mean $CACHE?)"]


def test_as_buildkit_counts() -> None:
    """Where a finding lies and how often it is told, as BuildKit of Docker 28 does."""
    text = (
        "FROM a\nWORKDIR b\nWORKDIR c\n"
        'ARG A=1 B="$A-$C"\n'
        "COPY <<one <<'two' /d/\n$HOMER\none\n$QUOTED 'apostrophe\ntwo\n"
        "RUN x && \\\n\n\n # comment\n y\n"
    )
    assert [(finding.rule, finding.line) for finding in found(text)] == [
        ("WorkdirRelativePath", 2), ("UndefinedVar", 4), ("UndefinedVar", 5), ("NoEmptyContinuation", 14),
    ]  # fmt: skip
