"""Parquet files and Hugging Face's datasets: images with labels and captions, read by row; and what is refused."""

import json
import pickle

import numpy as np
import pytest

from cmjax.config.data import read_data
from cmjax.config.fields import ConfigError, Fields
from cmjax.data import tables as tables_module
from cmjax.data.base import DataError, class_names
from cmjax.data.tables import tables
from cmjax.system.libraries import MissingLibrary
from tests.test_tars import encoded, images

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

SIZE = {"image_size": 8, "max_corrupt": 2}
NAMES = ["cat", "dog", "owl"]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
    "text": {"dtype": "string", "_type": "Value"},
}


def table(numbers, *, classes=True):
    """Rows as `datasets` has them: the image's bytes and its path in a struct, and in the schema what columns mean."""
    cells = [
        {"bytes": encoded(image), "path": f"{i}.png"} for i, image in zip(numbers, images(len(numbers), 0), strict=True)
    ]
    columns = {
        "id": arrow.array(list(numbers)),
        "image": arrow.array(cells, arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})),
        "label": arrow.array([i % 3 for i in numbers], arrow.int64()),
        "text": [f"number  {i}" for i in numbers],
    }
    made = arrow.table(columns)
    return (
        made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})}) if classes else made
    )


def save_to_disk(folder, parts):
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    files = []
    for i, part in enumerate(parts):
        files.append(f"data-{i:05d}-of-{len(parts):05d}.arrow")
        with arrow.ipc.new_stream(str(folder / files[-1]), part.schema) as stream:
            stream.write_table(part, max_chunksize=7)
    state = {"_data_files": [{"filename": name} for name in files], "_split": "train", "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_parquet(path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(made, path, row_group_size=7)
    return path


@pytest.fixture(params=["huggingface", "huggingface of the hub", "parquet"])
def stored(request, tmp_path):
    """The same forty rows in both kinds of files."""
    parts = [table(range(20)), table(range(20, 40))]
    if request.param == "huggingface":
        save_to_disk(tmp_path / "saved", parts)
    for i, part in enumerate(parts if request.param != "huggingface" else ()):
        write_parquet(tmp_path / "saved" / "data" / f"train-{i:05d}-of-00002.parquet", part)
    return request.param.split()[0], tmp_path / "saved"


@pytest.mark.parametrize("limit", [0, 10**9])
def test_rows_have_their_images_labels_and_captions(stored, limit):
    kind, root = stored
    whole = {
        split: tables(root, split, kind=kind, **SIZE, memory_limit_bytes=limit, captions=True)
        for split in ("train", "test")
    }
    train, test = whole.values()
    assert len(train) + len(test) == 40
    assert len(test) > 0
    assert class_names(train) == class_names(test) == tuple(NAMES)
    order = np.random.default_rng(0).permutation(len(train))
    batch = train.gather(order)
    numbers = [int(caption.split()[1]) for caption in batch["caption"]]
    np.testing.assert_array_equal(numbers, train.rows[order])
    assert batch["caption"][0] == f"number {numbers[0]}"
    np.testing.assert_array_equal(batch["label"], np.array(numbers) % 3)
    assert set(numbers).isdisjoint(test.rows)
    np.testing.assert_array_equal(batch["size"][0], [20, 24])
    copied = pickle.loads(pickle.dumps(train)).gather(order[:3])
    np.testing.assert_array_equal(copied["image"], batch["image"][:3])
    plain = tables(root, "train", kind=kind, **SIZE, memory_limit_bytes=limit)
    assert plain.gather(order).keys() == {"image", "label"}
    np.testing.assert_array_equal(plain.gather(order)["image"], batch["image"])


def test_split_files_are_splits_and_unknown_labels_are_no_test(tmp_path):
    for name, rows, label in (("train", range(9), None), ("validation", range(4), None), ("test", range(5), -1)):
        made = table(rows)
        if label is not None:
            made = made.set_column(2, "label", arrow.array([label] * len(rows)))
        write_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet", made)
    assert [len(tables(tmp_path, split, **SIZE)) for split in ("train", "test")] == [9, 4]
    both = {"train": save_to_disk(tmp_path / "dict" / "train", [table(range(9))])}
    both["test"] = save_to_disk(tmp_path / "dict" / "test", [table(range(6))])
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": list(both)}))
    assert [len(tables(tmp_path / "dict", s, kind="huggingface", **SIZE)) for s in both] == [9, 6]


def test_columns_are_found_or_named(tmp_path):
    made = table(range(8), classes=False).rename_columns(["id", "picture", "label", "alt"])
    path = write_parquet(tmp_path / "x.parquet", made)
    source = tables(path, "train", **SIZE, memory_limit_bytes=0)
    assert (source.columns, class_names(source)) == (("picture", "label", ""), ("0", "1", "2"))
    named = tables(path, "train", **SIZE, label_column="id", caption_column="alt", captions=True)
    assert named.gather(np.array([0]))["caption"][0].startswith("number ")
    assert class_names(named)[-1] == "7"
    without = write_parquet(tmp_path / "y.parquet", made.drop_columns(["label"]))
    assert tables(without, "train", **SIZE).num_classes is None


def test_a_row_without_an_image_or_a_caption_is_replaced_and_counted(tmp_path, caplog):
    made = table(range(12), classes=False)
    cells = made["image"].to_pylist()
    cells[4], cells[1], cells[2]["bytes"] = None, {"bytes": b"no image", "path": None}, None
    made = made.set_column(1, "image", arrow.array(cells))
    made = made.set_column(3, "text", arrow.array(["" if i == 3 else f"number {i}" for i in range(12)]))
    path = write_parquet(tmp_path / "x.parquet", made)
    source = tables(path, "train", image_size=8, max_corrupt=4, captions=True)
    batch = source.gather(np.arange(len(source)))
    assert not {1, 2, 3, 4} & {int(caption.split()[1]) for caption in batch["caption"]}
    for why in ("it has no image", "it is no image, or of a kind", "2.png, and its bytes are not here", "is empty"):
        assert why in caplog.text
    assert "x.parquet: row 3 cannot be read" in caplog.text


def test_what_has_no_such_columns_is_refused_in_one_line(tmp_path):
    made = table(range(8), classes=False)

    def refused(problem, path, **options):
        with pytest.raises(DataError, match=problem) as error:
            tables(path, "train", **SIZE, **options)
        assert "\n" not in str(error.value)

    path = write_parquet(tmp_path / "x" / "x.parquet", made)
    there = r"it has id \(integer\), image \(image\), label \(integer\), text \(text\)"
    refused(f"has no column 'jpg', config.data.image_column; {there}", path, image_column="jpg")
    refused("the column 'text' holds no encoded images, but text", path, image_column="text")
    refused("the column 'text' holds no whole numbers, but text", path, label_column="text")
    refused("the column 'id' holds integer, and no text", path, caption_column="id", captions=True)
    no_caption = write_parquet(tmp_path / "y.parquet", made.drop_columns(["text"]))
    refused(r"has no captions; config\.data\.caption_column names one of texts\. It has id", no_caption, captions=True)
    no_image = write_parquet(tmp_path / "z.parquet", made.drop_columns(["image"]))
    refused(r"has no images; config\.data\.image_column names one of bytes\. It has id", no_image)
    path.write_bytes(path.read_bytes()[:500])
    refused("x.parquet: cannot be read", path)
    refused("no such folder; a folder of parquet files", tmp_path / "nowhere")
    saved = save_to_disk(tmp_path / "saved", [made, made])
    refused('holds .arrow files, which config.data.name="huggingface" reads', saved)
    shard = saved / "data-00001-of-00002.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    refused("00001-of-00002.arrow: cannot be read", saved, kind="huggingface")
    shard.unlink()
    refused("00001-of-00002.arrow: is missing; copy it again", saved, kind="huggingface")
    state = {"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))
    refused("rows are chosen by a file of indices; save flatten_indices", saved, kind="huggingface")


def test_without_pyarrow_one_line_says_what_installs_it(tmp_path, monkeypatch):
    def missing(library, what):
        raise MissingLibrary(f"{what} needs {library}: pip install 'cmjax[tables]'")

    monkeypatch.setattr(tables_module, "require", missing)
    fields = {
        "name": "parquet", "data_dir": str(tmp_path), "image_size": 8, "channels": 0, "memory_limit_gb": 4.0,
        "max_corrupt": 10,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"config\.data\.name='parquet' needs pyarrow: pip install 'cmjax\[tables\]'"):
        read_data(Fields(fields))
