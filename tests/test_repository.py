"""The files around the package tell the truth: the locks are those of pyproject.toml, a page's links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.needs import require

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]
EXTRAS = [line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [("run.txt", RUN), ("test.txt", [*RUN, *EXTRAS, *PROJECT["dependency-groups"]["test"]])],
)
def test_the_lock_has_every_dependency_in_a_version_that_fits(lock: str, wanted: list[str]) -> None:
    pinned = dict(
        re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements" / lock).read_text(encoding="utf-8"), re.MULTILINE)
    )
    unmet = [
        line
        for line, requirement in ((line, Requirement(line)) for line in wanted)
        if requirement.name not in pinned or pinned[requirement.name] not in requirement.specifier
    ]
    assert unmet == [], "make lock"


@pytest.mark.parametrize("lock", ["requirements/run.txt", "requirements/test.txt", "tests/peers/package-lock.json"])
def test_a_lock_names_no_place_to_download_from(lock: str) -> None:
    assert re.findall(r'"resolved".*|.*index-url.*|.*@ https?:.*', (ROOT / lock).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_a_test_lacks_is_skipped_on_a_laptop_and_fails_in_ci(
    ci: str, outcome: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    require(True, "nothing is missing")
    with pytest.raises(outcome, match="no browser"):
        require(False, "no browser")
