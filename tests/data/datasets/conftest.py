"""Fixtures of the dataset tests: miniature archives, and the preparation scripts."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from fss_d2.data.datasets import fss1000
from tests.data.datasets.archives import write_coco, write_fss, write_voc

Script = Callable[..., int]


@pytest.fixture
def clean_catalogs() -> Iterator[None]:
    """Take off what a test registers; a module asks for it by ``usefixtures``."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """A datasets folder with a small VOC 2012 and SBD."""
    write_voc(tmp_path)
    return tmp_path


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """A datasets folder with a small COCO 2014."""
    write_coco(tmp_path)
    return tmp_path


@pytest.fixture
def fss_root(tmp_path: Path) -> Iterator[Path]:
    """A datasets folder with an FSS-1000 of seven classes, split 3 / 2 / 2; the catalog is restored after."""
    write_fss(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fss1000, "SPLIT_SIZES", {"train": 3, "val": 2, "test": 2})
        yield tmp_path
    for name in fss1000.names():
        MetadataCatalog.pop(name, None)
        if name in DatasetCatalog:
            MetadataCatalog.get(name).set(**fss1000.metadata(name))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that runs ``datasets/prepare_<name>.py`` in this process and gives its exit code."""
    folder = Path(__file__).parents[3] / "datasets"
    monkeypatch.syspath_prepend(str(folder))

    def run(name: str, *argv: str | Path) -> int:
        path = folder / f"prepare_{name}.py"
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return int(module.main([str(a) for a in argv]))

    return run
