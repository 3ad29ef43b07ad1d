"""The template engine against what Go prints."""

from __future__ import annotations

import pytest

from tare.cli.gotemplate import compile_template
from tare.cli.templatefunctions import MISSING, TemplateError

DATA = {
    "Name": "web",
    "State": {"Running": True, "ExitCode": 0, "Health": None},
    "Env": ["A=1", "B=2"],
    "Ports": {"80/tcp": [{"HostPort": "8080"}], "53/udp": None},
    "Labels": {"b": "2", "a": "1"},
    "Size": 12.5,
    "Nothing": None,
    "Call": lambda name: f"<{name}>",
}


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "web"),
        ("{{ .State.Running }} {{.State.ExitCode}} {{.Size}}", "true 0 12.5"),
        ("{{.Env}} {{.Labels}} {{.Nothing}}", "[A=1 B=2] map[a:1 b:2] <no value>"),
        ("{{json .Env}} {{.Name | json}}", '["A=1","B=2"] "web"'),
        ('{{index .Env 1}} {{(index (index .Ports "80/tcp") 0).HostPort}}', "B=2 8080"),
        ("{{range .Env}}[{{.}}]{{end}}", "[A=1][B=2]"),
        ("{{range $i, $e := .Env}}{{if $i}},{{end}}{{$e}}{{end}}", "A=1,B=2"),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "a=1;b=2;"),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ('{{range .Env}}{{if eq . "B=2"}}{{break}}{{end}}{{.}}{{end}}', "A=1"),
        ('{{range .Env}}{{if eq . "A=1"}}{{continue}}{{end}}{{.}}{{end}}', "B=2"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .Nothing}}a{{else if .Name}}b{{else}}c{{end}}", "b"),
        ("{{with .State}}{{.ExitCode}}{{end}}{{with .Nothing}}x{{else}}-{{end}}", "0-"),
        ("{{with $x := .Name}}{{$x}}{{$.Size}}{{end}}", "web12.5"),
        ("{{$a := 1}}{{if true}}{{$a = 2}}{{end}}{{$a}}", "2"),
        ('{{and .Name "x"}} {{or .Nothing "y"}} {{not .Name}}', "x y false"),
        ('{{if and .Name (eq .State.ExitCode 0) (ne .Name "db")}}yes{{end}}', "yes"),
        ("{{lt 1 2}} {{ge 2 2}} {{gt 1 2}} {{le 3 2}}", "true true false false"),
        ('{{eq .Name "a" "web"}}', "true"),
        (
            '{{printf "%s-%03d %q %v %5s|%-5s|%.2f %t %%" .Name 7 "q" .Env "a" "b" 1.5 true}}',
            'web-007 "q" [A=1 B=2]     a|b    |1.50 true %',
        ),
        ('{{upper .Name}} {{lower "ABC"}} {{title "hello"}} {{len .Env}}', "WEB abc Hello 2"),
        ('{{join .Env ";"}} {{split "a,b" ","}} {{slice .Name 1}} {{slice .Name 0 2}}', "A=1;B=2 [a b] eb we"),
        ('{{println "a" 1}}', "a 1\n"),
        ('{{print "a" 1 2 "b"}}', "a1 2b"),
        ('{{.Call "x"}} {{"y" | .Call}}', "<x> <y>"),
        ("a  {{- .Name -}}  b", "awebb"),
        ("{{/* a comment */}}x", "x"),
        ('{{"a\\tb"}} {{`raw\\n`}}', "a\tb raw\\n"),
        ('{{pad "x" 1 2}}|{{truncate "hello" 3}}', " x  |hel"),
        ('{{html "<a>"}}', "&lt;a&gt;"),
        ('{{.Name | printf "%s!" | upper}}', "WEB!"),
        ('{{.Labels.missing}}{{index .Labels "nope" | not}}', "<no value>true"),
        ("{{ .state.exitcode }}", "0"),
    ],
)
def test_renders(template: str, result: str) -> None:
    assert compile_template(template).execute(DATA) == result


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{", "unclosed action"),
        ("{{.Name", "unclosed action"),
        ('{{"a}}', "unterminated quoted string"),
        ("{{if .Name}}x", "unexpected EOF"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{}}", "missing value for command"),
        ("{{if}}x{{end}}", "missing value for if"),
        ("{{(.Name}}", "unclosed left paren"),
        ("{{.Name)}}", "unexpected right paren"),
        ("{{.Name | }}", "missing value for command"),
        ("{{/* x }}", "unclosed comment"),
    ],
)
def test_refuses_to_parse(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message.replace("{", "\\{")):
        compile_template(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Bogus}}", 'map has no entry for key "Bogus"'),
        ("{{.State.Health.Status}}", "nil pointer"),
        ("{{nosuch 1}}", 'function "nosuch" not defined'),
        ("{{index .Env 7}}", "index out of range"),
        ("{{eq .Name 1}}", "incompatible types"),
        ("{{$x}}", "undefined variable"),
        ("{{range .Name}}{{end}}", "range can't iterate"),
        ("{{.Name.Deeper}}", "can't evaluate field Deeper"),
        ('{{.Name "x"}}', "has arguments"),
        ("{{len 3}}", "error calling len"),
        ("{{slice .Name 9}}", "error calling slice"),
        ("{{upper}}", "error calling upper"),
    ],
)
def test_refuses_to_execute(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        compile_template(template).execute(DATA)


def test_a_typed_row_names_its_type_for_unknown_fields() -> None:
    with pytest.raises(TemplateError, match=r"can't evaluate field Bogus in type \*formatter.ContainerContext"):
        compile_template("{{.Bogus}}").execute({MISSING: "*formatter.ContainerContext", "ID": "x"})


def test_json_leaves_out_methods_and_marks() -> None:
    assert compile_template("{{json .}}").execute({MISSING: "x", "ID": "1", "Label": lambda name: name}) == '{"ID":"1"}'
