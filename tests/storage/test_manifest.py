import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ManifestError
from storage.location import parse_location
from storage.manifest import Manifest, Part, require_file_name, require_json

LOCATION = parse_location("/runs/r18")
PART = Part(path="model.0.safetensors", sha256="0" * 64, size_bytes=7)
MANIFEST = Manifest(
    kind="model", created="2026-01-01T00:00:00+00:00", description={"a": 1}, parts={"model": PART}
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(
    description=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _JSON),
    size_bytes=st.integers(0, 2**60),
)
def test_manifest_comes_back_as_it_was_written(
    description: dict[str, object], size_bytes: int
) -> None:
    require_json(description, name="description")
    part = Part(path="a.b", sha256="f" * 64, size_bytes=size_bytes)
    manifest = Manifest(kind="model", created="now", description=description, parts={"a": part})
    assert Manifest.from_json(manifest.to_json(), LOCATION) == manifest


def test_two_manifests_differ_even_if_made_at_once() -> None:
    again = Manifest(
        kind=MANIFEST.kind,
        created=MANIFEST.created,
        description=MANIFEST.description,
        parts=MANIFEST.parts,
    )
    assert again.to_json() != MANIFEST.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not Ringfence's; expected 'format': 'ringfence'"),
        ({"version": 2}, "version 2, newer than this program can read; expected at most 1"),
        ({"version": "1"}, "version '1'; expected 1"),
        ({"version": True}, "version True; expected 1"),
        ({"kind": None}, "kind None; expected a str"),
        ({"created": 5}, "created 5; expected a str"),
        ({"description": []}, r"description \[\]; expected a dict"),
        ({"parts": {"x": 3}}, "part 'x', is 3; expected path, sha256 and size_bytes"),
        ({"parts": {"x": {"path": 1}}}, "path 1; expected a str"),
    ],
)
def test_manifest_with_a_wrong_field_is_refused(changes: dict[str, object], message: str) -> None:
    document = json.loads(MANIFEST.to_json()) | changes
    with pytest.raises(ManifestError, match=f"/runs/r18's MANIFEST.json.*{message}"):
        Manifest.from_json(json.dumps(document).encode(), LOCATION)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../model"}, r"path '\.\./model'; expected a plain file name"),
        ({"path": "/etc/passwd"}, "path '/etc/passwd'"),
        ({"sha256": "f00"}, "sha256 'f00'"),
        ({"size_bytes": -1}, "size_bytes -1"),
        ({"size_bytes": True}, "size_bytes True; expected a int"),
    ],
)
def test_part_with_a_wrong_field_is_refused(changes: dict[str, object], message: str) -> None:
    document = json.loads(MANIFEST.to_json())
    document["parts"]["model"] |= changes
    with pytest.raises(ManifestError, match=f"part 'model',.*{message}"):
        Manifest.from_json(json.dumps(document).encode(), LOCATION)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 10**6])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError, match=r"/runs/r18's MANIFEST\.json is not"):
        Manifest.from_json(data, LOCATION)


@pytest.mark.parametrize("name", ["", ".hidden", "-flag", "a/b", "a b", "..", "ä"])
def test_part_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"part name is {name!r}"):
        require_file_name(name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sep": {"lr": float("nan")}}, r"d\.sep\.lr is nan"),
        ({"a": [1, float("-inf")]}, r"d\.a\[1\] is -inf"),
        ({"a": {3: "x"}}, r"d\.a has the key 3; expected strings"),
        ({"a": b"x"}, r"d\.a is b'x', a bytes"),
        ({"a": {1, 2}}, r"d\.a is \{1, 2\}, a set"),
    ],
)
def test_description_that_json_cannot_hold_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_json(value, name="d")
