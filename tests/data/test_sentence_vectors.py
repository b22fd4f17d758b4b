"""Where sentence vectors come from: parquet, text, or made up; what is held out; what cannot be used."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.test_codecs import SIZES, embedded
from flops_fit.data import parquet
from flops_fit.data import sentence_vectors as module
from flops_fit.data.codecs import VOCABULARY, Embedded, codec_named
from flops_fit.data.sentence_vectors import encoded, held_out_vectors, sentence_vectors
from flops_fit.data.sentences import made_up_sentences, read_sentences
from flops_fit.data.vectors import read_vectors, write_vectors
from flops_fit.errors import InputError
from flops_fit.models import weights

TEXTS = [f"The {kind} saw {n} birds." for kind in ("cat", "dog", "fox", "man") for n in range(50)]


@pytest.fixture
def codec(tmp_path: Path) -> str:
    one, folder = embedded(), tmp_path / "codec"
    weights.save(folder, one.model.state_dict(), {"arguments": SIZES})
    (folder / VOCABULARY).write_text(one.vocabulary.to_json())
    return str(folder)


def test_sentences_that_lose_their_ends_are_told(codec: str) -> None:
    coder = codec_named(codec)
    assert isinstance(coder, Embedded)
    kept = coder.model.context - 1
    short, long = coder.vocabulary.decode(coder.vocabulary.encode(TEXTS[:1], kept))[0][:1], " ".join(TEXTS[:9])
    assert coder.cut([short, long, long]) == 2
    assert encoded(coder, [short, long], "some").described.startswith("some (1 sentences cut off, longer than")
    assert encoded(coder, [short], "some").described.startswith("some: 1 vectors")


def test_text_is_encoded_and_split_by_content(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS + TEXTS[:20]))
    train, held_out = sentence_vectors(str(path), codec)
    assert set(train.texts) | set(held_out.texts) == set(TEXTS) and not set(train.texts) & set(held_out.texts)
    again = codec_named(train.codec)
    torch.testing.assert_close(again.encode(train.texts), train.values)
    fewer, same = sentence_vectors(str(path), codec, most=30)
    assert fewer.texts == train.texts[:30] and same.texts == held_out.texts
    judged = held_out_vectors(str(path), codec)
    assert judged.fingerprint == held_out.fingerprint and torch.equal(judged.values, held_out.values)


def test_made_up_sentences_need_nothing(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(module, "MADE_UP", 300)
    monkeypatch.setattr(module, "DEFAULT_CODEC", codec)
    train, held_out = sentence_vectors(None)
    assert set(train.texts) | set(held_out.texts) == set(made_up_sentences(300))
    assert train.values.shape == (len(train.texts), SIZES["dim"]) and train.codec.startswith(codec)


def test_made_up_sentences_are_different_and_short() -> None:
    found = made_up_sentences(500)
    assert len(set(found)) == 500 and max(len(one.split()) for one in found) <= 20
    assert found == made_up_sentences(600)[:500] and made_up_sentences(0) == []
    assert all(one[0].isupper() or one[0] == '"' for one in found)


def test_parquet_is_split_by_its_column_or_by_hash(tmp_path: Path) -> None:
    values = torch.randn(60, 8)
    split = ["train"] * 40 + ["val"] * 15 + ["gsm8k"] * 5
    rows = {"embedding": list(values.numpy()), "text": TEXTS[:60]}
    parquet.write(tmp_path / "split.parquet", {**rows, "split": split})
    train, held_out = sentence_vectors(str(tmp_path / "split.parquet"), "sonar", most=30)
    assert torch.equal(train.values, values[:30]) and torch.equal(held_out.values, values[40:55])
    assert train.codec == held_out.codec == "sonar" and held_out.texts == tuple(TEXTS[40:55])
    judged = held_out_vectors(str(tmp_path / "split.parquet"), "sonar")
    assert judged.fingerprint == held_out.fingerprint and torch.equal(judged.values, held_out.values)
    write_vectors(tmp_path / "plain.parquet", values, TEXTS[:60])
    assert torch.equal(read_vectors(tmp_path / "plain.parquet").values, values)
    train, held_out = sentence_vectors(str(tmp_path / "plain.parquet"))
    assert len(train) + len(held_out) == 60 and train.codec == ""


def test_a_file_of_one_part_that_is_not_for_training_is_refused(tmp_path: Path) -> None:
    """It would be cut in two by hash, and most of what was held out trained on."""
    rows = {"embedding": list(torch.randn(60, 8).numpy()), "split": ["test"] * 60}
    parquet.write(tmp_path / "test.parquet", rows)
    with pytest.raises(InputError, match="split: got test; one part must be named train, or leave the column out"):
        sentence_vectors(str(tmp_path / "test.parquet"))
    parquet.write(tmp_path / "some.parquet", {**rows, "split": ["train"] * 40 + [None] * 10 + ["val"] * 10})
    with pytest.raises(InputError, match="split: 10 of 60 rows of some.parquet have none; fill the column"):
        sentence_vectors(str(tmp_path / "some.parquet"))


def test_equal_vectors_are_on_one_side_in_whatever_order(tmp_path: Path) -> None:
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    parquet.write(tmp_path / "twice.parquet", {"embedding": list(rows.numpy())})
    parquet.write(tmp_path / "mixed.parquet", {"embedding": list(rows[torch.randperm(800)].numpy())})
    sides = []
    for name in ("twice", "mixed"):
        train, held_out = sentence_vectors(str(tmp_path / f"{name}.parquet"))
        sides.append([{row.numpy().tobytes() for row in part.values} for part in (train, held_out)])
    assert sides[0] == sides[1] and not sides[0][0] & sides[0][1]
    assert 5 < len(sides[0][1]) < 45  # a twentieth of 400, within four deviations


def test_a_folder_with_an_at_in_its_name_holds_a_codec(tmp_path: Path, codec: str) -> None:
    folder = tmp_path / "me@home"
    shutil.copytree(codec, folder)
    reference = codec_named(str(folder)).reference
    assert reference.startswith(f"{folder}@") and codec_named(reference).reference == reference


def test_a_codec_with_other_weights_is_refused(codec: str) -> None:
    reference = codec_named(codec).reference
    assert codec_named(reference).reference == reference
    one = embedded()
    weights.save(Path(codec), {k: v + 1 for k, v in one.model.state_dict().items()}, {"arguments": SIZES})
    with pytest.raises(InputError, match="has other weights .* than those of the vectors"):
        codec_named(reference)
    with pytest.raises(InputError, match="--codec: got 'sonor'; .* did you mean sonar"):
        codec_named("sonor")


def test_too_few_sentences(tmp_path: Path, codec: str) -> None:
    (tmp_path / "two.txt").write_text("One.\nTwo.\n")
    with pytest.raises(InputError, match="give more: one in twenty is held out"):
        sentence_vectors(str(tmp_path / "two.txt"), codec)
    with pytest.raises(InputError, match="in a folder that exists"):
        write_vectors(tmp_path / "no" / "x.parquet", torch.zeros(2, 3), ["a", "b"])


def test_text_is_known_again_by_its_words_not_by_the_last_digits_of_its_vectors(tmp_path: Path, codec: str) -> None:
    """Another machine adds in another order; what was trained on stays the same."""
    found = encoded(codec_named(codec), TEXTS[:5], "some")
    rounded = replace(found, values=found.values + 1e-7)
    assert rounded.fingerprint == found.fingerprint != encoded(codec_named(codec), TEXTS[1:6], "some").fingerprint
    assert replace(found, codec="another").fingerprint != found.fingerprint
    assert replace(rounded, of_texts=False).fingerprint != replace(found, of_texts=False).fingerprint


def test_marks_at_the_head_of_a_file_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfHello there.\n")
    assert read_sentences(tmp_path / "bom.txt") == ["Hello there."]


def test_a_column_of_texts_holds_text(tmp_path: Path) -> None:
    rows = {"embedding": list(torch.randn(4, 3).numpy()), "text": [1, 2, 3, 4]}
    parquet.write(tmp_path / "v.parquet", rows)
    with pytest.raises(InputError, match="column text of v.parquet holds 1; allowed is text"):
        read_vectors(tmp_path / "v.parquet")


@pytest.mark.parametrize("damage", [None, b"", b"\x93NUMPY"])
def test_many_are_encoded_once(
    damage: bytes | None, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "KEPT_FROM", 20)
    monkeypatch.setattr(module, "PART", 7)
    one, asked = codec_named(codec), []
    encode = one.encode
    monkeypatch.setattr(one, "encode", lambda texts: (asked.append(len(texts)), encode(texts))[1])
    first = encoded(one, TEXTS, "texts")
    assert sum(asked) == len(TEXTS) and max(asked) == 7
    torch.testing.assert_close(first.values, encode(TEXTS), rtol=1e-3, atol=1e-4)  # half precision
    [file] = (tmp_path / "cache" / "flops-fit").glob("vectors-*/vectors.npy")
    if damage is not None:
        file.write_bytes(damage)
    again = encoded(one, TEXTS, "texts")
    assert torch.equal(again.values, first.values) and again.fingerprint == first.fingerprint
    assert sum(asked) == len(TEXTS) * (1 if damage is None else 2)
    encoded(one, TEXTS[:21], "texts")
    encoded(replace_reference(one), TEXTS, "texts")
    assert len(list((tmp_path / "cache" / "flops-fit").iterdir())) == 3  # other texts, another codec


def replace_reference(codec: Embedded) -> Embedded:
    return Embedded(codec.model, codec.vocabulary, "another@0123")


def test_a_cache_that_cannot_be_written_costs_time_only(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "KEPT_FROM", 20)
    assert len(encoded(codec_named(codec), TEXTS, "texts")) == len(TEXTS)
