from ray_jobs.reports.heat_maps import accuracy_maps, gain_maps
from ray_jobs.reports.views import HeatCell
from tests.ray_jobs.reports.audits import attack, curve, data_report_of, model_report


def gains(*cells: tuple[str, dict[str, object], float]) -> list[dict[str, object]]:
    """Cells of a model audit by domain and facts that end so far above scratch, at 0.5."""
    results = [
        attack(f"attack {number}", [curve(0.5 + gain)] * 2, domain=domain, **facts)
        for number, (domain, facts, gain) in enumerate(cells)
    ]
    return model_report(*results)["cells"]


def facts(method: str, optimizer: str, finetune_lr: float, **more: object) -> dict[str, object]:
    return {"method": method, "optimizer": optimizer, "finetune_lr": finetune_lr, **more}


def test_gains_are_by_what_is_trained_and_by_optimizer_the_longer_side_down() -> None:
    (shown,) = gain_maps(
        gains(
            ("d", facts("all_layers", "sgd", 0.01, batch_size=64), -0.3),
            ("d", facts("all_layers", "sgd", 0.001, batch_size=64), 0.0),
            ("d", facts("all_layers", "adam", 0.001, batch_size=64), 0.04),
            ("d", facts("head_only", "adam", 0.001, batch_size=64), 0.3),
        )
    )
    assert shown.columns == ["all_layers", "head_only"]
    assert (shown.row_name, shown.column_name) == ("optimizer, learning rate", "what is trained")
    assert shown.rows == {
        "adam, 0.001": [HeatCell("+4.0", 2), HeatCell("+30.0", 5)],
        "sgd, 0.001": [HeatCell("+0.0", 0), None],
        "sgd, 0.01": [HeatCell("-30.0", 0), None],
    }


def test_a_place_shows_the_worst_of_its_cells_and_names_only_what_differs() -> None:
    (shown,) = gain_maps(
        gains(
            ("d", facts("all_layers", "sgd", 0.01, batch_size=64, decay=None), -0.3),
            ("d", facts("all_layers", "sgd", 0.01, batch_size=64, decay=None), 0.01),
            ("d", facts("all_layers", "adam", 0.01, batch_size=8, decay=0.5), -0.1),
        )
    )
    assert shown.rows == {
        "batch size 64": [None, HeatCell("+1.0", 1)],
        "batch size 8": [HeatCell("-10.0", 0), None],
    }
    assert shown.columns == ["adam, 0.01", "sgd, 0.01"]


def test_every_domain_has_its_map() -> None:
    cells = [
        (domain, facts(method, "sgd", rate), gain)
        for domain, gain in (("cats", 0.1), ("dogs", -0.1))
        for method in ("all_layers", "head_only")
        for rate in (0.1, 0.01)
    ]
    titles = [shown.title for shown in gain_maps(gains(*cells))]
    assert titles == [
        "Transfer gain by kind of attack, cats",
        "Transfer gain by kind of attack, dogs",
    ]


def test_a_map_that_would_be_a_list_is_left_out() -> None:
    assert gain_maps(gains(("d", {}, 0.1), ("d", {}, 0.2))) == []
    rates = [("d", facts("all_layers", "sgd", rate), 0.1) for rate in (0.1, 0.01)]
    assert gain_maps(gains(*rates)) == []


def test_accuracy_left_is_coloured_by_its_way_from_chance_to_clean() -> None:
    protected = {"jpeg_10": [curve(0.62)], "none": [curve(0.1)], "mixup": [curve(0.95)]}
    curves = {
        "one": {"protected": protected, "clean": [curve(0.9)]},
        "two": {"protected": protected, "clean": [curve(0.1)]},
    }
    (shown,) = accuracy_maps(data_report_of(curves, seeds=[0], num_classes=5))
    assert shown.columns == ["one", "two"]
    assert list(shown.rows) == ["none", "jpeg_10", "mixup"]
    # (0.62 - 0.2) / (0.9 - 0.2) is three fifths; the other's clean images taught nothing.
    assert shown.rows["jpeg_10"] == [HeatCell("62.0", 3), HeatCell("62.0", 5)]
    assert [cell.level for cell in (shown.rows["none"][0], shown.rows["mixup"][0])] == [0, 5]
