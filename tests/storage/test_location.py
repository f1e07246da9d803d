from pathlib import Path

import pyarrow
import pyarrow.fs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import LocationError
from storage.location import Location, parse_location

_NAMES = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/?"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))


def test_relative_path_becomes_absolute_and_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_location("runs/../r18").path == tmp_path / "r18"
    assert parse_location("~/r18").path == Path("/home/somebody/r18")
    assert parse_location(Path("r18")) == parse_location("r18")


def test_file_url_is_a_local_path() -> None:
    assert parse_location("file:///data/a%20b").path == Path("/data/a b")
    assert str(parse_location("file://localhost/data")) == "/data"


def test_s3_address_is_taken_apart() -> None:
    text = "s3://bucket/runs/r#18;x?endpoint_override=127.0.0.1:9000&region=eu-west-1&scheme=http"
    location = parse_location(text)
    assert (location.bucket, location.key, location.name) == ("bucket", "runs/r#18;x", "r#18;x")
    assert location.endpoint_url == "http://127.0.0.1:9000"
    assert location.region == "eu-west-1"
    assert not location.is_local
    assert str(location) == text


def test_endpoint_may_be_given_as_a_url() -> None:
    location = parse_location("s3://b/x?endpoint_override=http://minio:9000/")
    assert location.endpoint_url == "http://minio:9000"
    assert parse_location("s3://b/x?endpoint_override=minio:9000").endpoint_url == (
        "https://minio:9000"
    )


def test_encryption_is_part_of_the_address_but_not_of_arrows() -> None:
    key = "arn:aws:kms:eu-west-1:111122223333:key/1234-abcd"
    text = f"s3://b/x?region=eu-west-1&server_side_encryption=aws:kms&kms_key_id={key}"
    location = parse_location(text)
    assert (location.server_side_encryption, location.kms_key_id) == ("aws:kms", key)
    assert str(location) == text
    assert parse_location(str(location.sibling(".run") / "a")).kms_key_id == key
    assert location.arrow_uri == "s3://b/x?region=eu-west-1"
    # Arrow itself is asked: it refuses an option that it does not know.
    filesystem, path = pyarrow.fs.FileSystem.from_uri(location.arrow_uri)
    assert (filesystem.region, path) == ("eu-west-1", "b/x")
    with pytest.raises(pyarrow.ArrowInvalid, match="kms_key_id"):
        pyarrow.fs.FileSystem.from_uri(text)
    assert parse_location("s3://b/x?server_side_encryption=AES256").arrow_uri == "s3://b/x"
    assert parse_location("/runs/r18").arrow_uri == "/runs/r18"


@given(bucket=st.from_regex(r"[a-z0-9][a-z0-9.-]{2,20}", fullmatch=True), names=st.lists(_NAMES))
def test_text_form_parses_back_to_the_same_location(bucket: str, names: list[str]) -> None:
    s3 = parse_location(f"s3://{bucket}?region=eu-west-1")
    local = parse_location("/root")
    for name in names:
        s3, local = s3 / name, local / name
        assert parse_location(str(s3)) == s3
        assert parse_location(str(local)) == local
        assert s3.name == local.name == name
        assert (s3.parent / name, local.parent / name) == (s3, local)


@pytest.mark.parametrize("root", ["/runs", "s3://bucket/runs"])
def test_sibling_appends_to_the_name(root: str) -> None:
    location = parse_location(root) / "r18"
    assert str(location.sibling(".run")).removesuffix("?") == f"{root}/r18.run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"location is '', which names nothing; expected a local path"),
        (" runs", r"location is ' runs'"),
        ("a\0b", r"names nothing"),
        ("gs://bucket/x", r"'gs://bucket/x', a scheme not supported; .*s3://bucket/prefix"),
        ("http://host/x", r"'http://host/x', a scheme not supported"),
        ("s3:/bucket/x", r"did you mean s3://bucket/x\?"),
        ("s3://", r"whose bucket is ''"),
        ("s3://buc ket/x", r"whose bucket is 'buc ket'"),
        ("s3://bucket/a//b", r"did you mean s3://bucket/a/b\?"),
        ("s3://bucket/../b", r"'s3://bucket/../b', whose prefix"),
        ("s3://bucket/x?endpoint=h", r"option 'endpoint'.*endpoint_override, region, scheme"),
        ("s3://bucket/x?region=", r"option 'region'"),
        ("s3://bucket/x?scheme=ftp", r"scheme is 'ftp'; expected http or https"),
        (
            "s3://bucket/x?server_side_encryption=aes",
            r"'s3://bucket/x', whose server_side_encryption is 'aes'; expected AES256 or aws:kms",
        ),
        ("s3://bucket/x?kms_key_id=alias/k", r"kms_key_id would be ignored; .*=aws:kms"),
        (
            "s3://bucket/x?server_side_encryption=AES256&kms_key_id=k",
            r"kms_key_id would be ignored; expected it only beside server_side_encryption=aws:kms",
        ),
        ("file://other/x", r"on host 'other'"),
        ("~nobody-of-that-name/x", r"'~nobody-of-that-name/x', whose user has no home"),
    ],
)
def test_malformed_location_is_refused_with_the_value_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(LocationError, match=message):
        parse_location(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:hunter2@bucket/x",
        "https://key:hunter2@host/x",
        "s3://bucket/x?secret_key=hunter2",
        "s3://bucket/x?endpoint_override=key:hunter2@host",
        "http://host/x?token=hunter2",
    ],
)
def test_secret_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_location(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "/x", "../x", "a//b", "a/.", "x\0"])
def test_name_that_leads_out_of_a_location_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"name is .*, which does not stay inside /runs"):
        parse_location("/runs") / name


def test_question_mark_is_refused_only_where_it_would_begin_options() -> None:
    assert (parse_location("/runs") / "a?b").name == "a?b"
    with pytest.raises(ValueError, match=r"name is 'a\?b'"):
        parse_location("s3://bucket") / "a?b"


@pytest.mark.parametrize("root", ["/", "s3://bucket"])
def test_root_has_no_sibling(root: str) -> None:
    with pytest.raises(ValueError, match=r"has no sibling '\.run'"):
        parse_location(root).sibling(".run")


def test_location_on_s3_has_no_path() -> None:
    with pytest.raises(ValueError, match="location is s3://bucket/x, which has no local path"):
        _ = Location(scheme="s3", bucket="bucket", key="x").path
