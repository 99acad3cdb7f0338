import contextlib
import multiprocessing
import subprocess
from pathlib import Path

import pytest

from stack import build, cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_cache_is_in_the_folder_of_the_user(folder: Path) -> None:
    assert cache.folder() == folder / "cascade" / "bin"
    assert build.collector_path().parent == cache.folder()


def test_a_built_program_is_not_built_again() -> None:
    program = cache.folder() / "program"
    with cache.building(program) as scratch:
        assert scratch
        (scratch / "program").write_text("built")
        assert not program.exists()
    assert program.read_text() == "built"
    with cache.building(program) as scratch:
        assert scratch is None


def test_a_failed_build_leaves_no_files() -> None:
    program = cache.folder() / "program"
    with contextlib.suppress(RuntimeError), cache.building(program) as scratch:
        assert scratch
        (scratch / "program").write_text("half")
        raise RuntimeError
    assert [path.name for path in cache.folder().iterdir()] == [".program.lock"]


def _build(program: Path, builds: Path) -> None:
    with cache.building(program) as scratch:
        if scratch is not None:
            (scratch / program.name).write_text("built")
            with builds.open("a") as file:
                file.write("built\n")


def test_concurrent_builds_build_once(tmp_path: Path) -> None:
    context, builds = multiprocessing.get_context("spawn"), tmp_path / "builds"
    workers = [context.Process(target=_build, args=(cache.folder() / "program", builds)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert builds.read_text() == "built\n"


def test_a_changed_manifest_has_another_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = build.collector_path()
    changed = tmp_path / "builder.yaml"
    changed.write_text(build.MANIFEST.read_text() + "# more\n")
    monkeypatch.setattr(build, "MANIFEST", changed)
    assert build.collector_path() != usual
    assert build.collector_version() in build.collector_path().name


def test_the_error_of_a_missing_go_contains_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.BuildError, match=r"no Go \(https://go.dev\) that is new enough is installed"):
        build.jaeger()


def test_the_error_contains_the_output_of_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "go").write_text("#!/bin/sh\n[ $1 = list ] || { echo no network here; exit 1; }\n")
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    lines = list[str]()
    with pytest.raises(build.BuildError, match="no network here"):
        build.collector(lines.append)
    assert "once per machine" in lines[0]
    assert subprocess.run(["ls", cache.folder()], capture_output=True, text=True, check=True).stdout == ""


def test_the_modules_and_caches_of_an_installed_go_are_removed_after_the_builds(folder: Path) -> None:
    paths = [build.collector_path(), build.jaeger_path(), build.compose_config_path(), build.mochi_path()]
    paths.append(build.actionlint_path())
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "cascade" / "go-scratch" / "path").mkdir(parents=True)
    assert build.everything(lambda _: None) == paths
    assert not (folder / "cascade" / "go-scratch").exists()
