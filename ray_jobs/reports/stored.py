"""An audit's report as it is kept: one JSON file, the same for a terminal, and as a page."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ray_jobs.errors import UsageError
from ray_jobs.reports.data_report import DATA_AUDIT
from ray_jobs.reports.data_view import data_view
from ray_jobs.reports.denoiser_view import DENOISER_AUDIT, denoiser_view
from ray_jobs.reports.markdown import to_markdown
from ray_jobs.reports.model_report import MODEL_AUDIT
from ray_jobs.reports.model_view import model_view
from ray_jobs.reports.reproduction import run_facts
from ray_jobs.reports.views import View
from ray_jobs.runs import Run, provenance
from storage.commit import commit, read_manifest, read_part
from storage.location import parse_location
from storage.manifest import Manifest

logger = logging.getLogger(__name__)

JSON_PART: Final = "report.json"
MARKDOWN_PART: Final = "report.md"
PAGE_PART: Final = "report.html"

# Of report.json; another layout is another number.
VERSION: Final = 1

VIEWS: Final[dict[str, Callable[[Mapping[str, Any]], View]]] = {
    MODEL_AUDIT: model_view,
    DATA_AUDIT: data_view,
    DENOISER_AUDIT: denoiser_view,
}
"""By the report's format, which is also the kind of its commit."""


def commit_report(
    this_run: Run,
    report: Mapping[str, Any],
    *,
    parents: Mapping[str, Any],
    picture: bytes | None = None,
) -> str:
    """Publish ``report`` at the run's output, show it, and return the location.

    Args:
        this_run: of the audit.
        report: as `build_report` made it; its ``headline`` becomes the manifest's metrics.
        parents: what was audited, ``protected``, and against what.
        picture: PNG file for the page.
    """
    # Here: the workers of an audit import this module, too, and draw nothing.
    from ray_jobs.reports.page import to_html

    report = {"version": VERSION, **report, "run": run_facts(this_run, parents)}
    view = VIEWS[report["format"]](report)
    markdown = to_markdown(view)
    commit(
        this_run.output,
        {
            JSON_PART: json.dumps(report).encode(),
            MARKDOWN_PART: markdown.encode(),
            PAGE_PART: to_html(view, report["run"], picture=picture).encode(),
        },
        kind=report["format"],
        description={
            **provenance(this_run),
            "metrics": report["headline"],
            "parents": dict(parents),
        },
    )
    logger.info("\n%s", markdown)
    return str(this_run.output)


class StoredReport(NamedTuple):
    """A report read back, and the manifest that it was committed with."""

    report: dict[str, Any]
    manifest: Manifest

    @property
    def view(self) -> View:
        """What is shown of it."""
        return VIEWS[self.report["format"]](self.report)


def read_report(location: str) -> StoredReport:
    """Return the audit report that is committed at ``location``.

    Raises:
        StorageError: nothing is committed there.
        UsageError: what is there is no audit, or one of another version.
    """
    location = str(parse_location(location))
    manifest = read_manifest(location)
    if manifest.kind not in VIEWS:
        raise UsageError(
            f"{location} is a committed {manifest.kind}; expected the location of a report, as "
            "audit-model or audit-data printed it"
        )
    report: dict[str, Any] = json.loads(read_part(location, JSON_PART, manifest=manifest))
    if report.get("version") != VERSION:
        raise UsageError(
            f"{location} is a report of version {report.get('version')}, and this program reads "
            f"{VERSION}; expected one that this version of Ringfence made (audit again)"
        )
    return StoredReport(report, manifest)
