# SPDX-License-Identifier: Apache-2.0
"""Reading HLO text."""

import pytest
from oneshot import hlo_text
from program import HLO


def test_parse() -> None:
    add, main = hlo_text.parse(HLO)
    assert list(add.instructions) == ["a", "b", "c"]
    assert add.instructions["c"].operands == ("a", "b")
    out = main.instructions["out"]
    assert (out.shape, out.opcode, out.operands) == (
        "(f32[4,8], f32[4,8])",
        "tuple",
        ("sine", "all-reduce.1"),
    )
    assert main.instructions["x"].literal == "0"
    assert main.instructions["all-reduce"].op_name == "jit(m)/psum"
    assert main.users()["r"] == ["sum", "all-reduce.1"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '  ROOT %y.1 = f32[2]{0} add(f32[2]{0} %x, f32[2]{0} %z.2), metadata={op_name="a(b"}',
            ("y.1", "f32[2]", "add", ("x", "z.2"), ""),
        ),
        (
            "  t = (f32[2]{0:T(128)}, /*index=1*/(s32[], u8[])) while(s), body=b",
            ("t", "(f32[2], (s32[], u8[]))", "while", ("s",), ""),
        ),
        ("  c = s32[2]{0} constant({1, 2})", ("c", "s32[2]", "constant", (), "{1, 2}")),
        ("  i = u32[] replica-id()", ("i", "u32[]", "replica-id", (), "")),
        (
            '  k = f32[2]{0} custom-call(x), custom_call_target="f(", backend_config={a="),"}',
            ("k", "f32[2]", "custom-call", ("x",), ""),
        ),
    ],
)
def test_parse_line(line: str, expected: tuple) -> None:
    (computation,) = hlo_text.parse(f"ENTRY %main (p: f32[2]) -> f32[2] {{\n{line}\n}}\n")
    (found,) = computation.instructions.values()
    assert (found.name, found.shape, found.opcode, found.operands, found.literal) == expected


def test_parse_skips_what_it_does_not_know() -> None:
    text = 'HloModule m\n\nFileNames\n1 "a = b"\n\nmain {\n  odd\n  x = f32[] add(\n  y = f32[\n}\n'
    (computation,) = hlo_text.parse(text)
    assert not computation.instructions


@pytest.mark.parametrize(
    ("mesh", "groups"),
    [
        ("@mesh<a=2> {a}", "{{0,1}}"),
        ("@mesh<a=2,b=3> {b}", "{{0,1,2},{3,4,5}}"),
        ("@mesh<a=2,b=3> {a}", "{{0,3},{1,4},{2,5}}"),
        ("@mesh<a=2,b=2,c=2> {a,c}", "{{0,1,4,5},{2,3,6,7}}"),
        ("@mesh<a=2,b=2,c=2> {c,a}", "{{0,4,1,5},{2,6,3,7}}"),
        # As jaxlib writes it.
        ("mesh['tp'=4] {'tp'}", "{{0,1,2,3}}"),
        ("mesh['axis_0'=2,'axis_1'=3] {'axis_1'}", "{{0,1,2},{3,4,5}}"),
        # Not understood: left for XLA's parser to refuse.
        ("@mesh<a=4> {a:(1)2}", "@mesh<a=4> {a:(1)2}"),
        ("@mesh<a=2, device_ids=(1,0)> {a}", "@mesh<a=2, device_ids=(1,0)> {a}"),
        ("@mesh<a=2> {b}", "@mesh<a=2> {b}"),
    ],
)
def test_mesh_groups(mesh: str, groups: str) -> None:
    text = f"all-reduce(x), replica_groups={mesh}, to_apply=add"
    assert hlo_text.without_meshes(text) == f"all-reduce(x), replica_groups={groups}, to_apply=add"


def test_shardings_go() -> None:
    text = (
        'parameter(0), sharding={@mesh<a=2>, [{a}, {}]}, metadata={op_name="}"}\n'
        "y, sharding={replicated}"
    )
    assert hlo_text.without_meshes(text) == 'parameter(0), metadata={op_name="}"}\ny'
