from pathlib import Path

import cascade as cs
from cascade.adapters.caching.file_existence import FileExistenceCache


def test_the_value_is_the_path_if_the_file_exists(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    cache = FileExistenceCache(str(target))
    assert cache.check("id", {}) is None
    target.touch()
    assert cache.check("id", {}) == str(target)


def test_the_path_may_depend_on_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    cache = FileExistenceCache(lambda inputs: str(tmp_path / inputs["name"]))
    assert cache.check("id", {"name": "a"}) == str(tmp_path / "a")
    assert cache.check("id", {"name": "b"}) is None


def test_save_does_nothing(tmp_path: Path) -> None:
    FileExistenceCache(str(tmp_path / "out")).save("id", {}, "output")
    assert list(tmp_path.iterdir()) == []


def test_a_task_whose_file_exists_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"

    @cs.task
    def make(text: str) -> str:
        target.write_text(target.read_text() + text if target.exists() else text)
        return str(target)

    for _ in range(2):
        assert cs.run(make("once").with_cache(FileExistenceCache(str(target)))) == str(target)
    assert target.read_text() == "once"
