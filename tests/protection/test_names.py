import pytest

from protection.names import nearest


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("SGD", ["adam", "sgd"], " (did you mean sgd?)"),
        ("lorra", ["lora", "all_layers"], " (did you mean lora?)"),
        ("xyz", ["lora", "all_layers"], ""),
        ("anything", [], ""),
        (5, [50, 7], " (did you mean 50?)"),
    ],
)
def test_nearest_name_is_suggested_whatever_its_case(
    word: object, known: list[object], expected: str
) -> None:
    assert nearest(word, known) == expected


def test_as_many_names_are_suggested_as_asked_for() -> None:
    known = ["protect-model", "protect-data", "pretrain"]
    assert nearest("protect", known, most=2) == " (did you mean protect-data or protect-model?)"
