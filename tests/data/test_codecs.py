"""Codecs: one contract over both; SONAR by a stand-in with its package's interface, since its weights are not here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.codec import TEXTS, CodecContract
from flops_fit.data.codecs import VOCABULARY, Codec, Embedded, Sonar
from flops_fit.data.sentences import Vocabulary, read_sentences
from flops_fit.errors import InputError, MissingExtra
from flops_fit.models import weights
from flops_fit.models.codec import SentenceCodec

SIZES = {"width": 16, "vocab_size": 300, "context": 12, "slots": 4, "dim": 32, "layers": 1, "heads": 2}


def embedded() -> Embedded:
    torch.manual_seed(0)
    vocabulary = Vocabulary.learned(TEXTS * 5, 300)
    return Embedded(SentenceCodec(**SIZES), vocabulary)


class TestEmbedded(CodecContract):
    def codec(self) -> Codec:
        return embedded()

    def test_it_comes_back_from_its_folder(self, tmp_path: Path) -> None:
        one = embedded()
        weights.save(tmp_path, one.model.state_dict(), {"arguments": SIZES})
        (tmp_path / VOCABULARY).write_text(one.vocabulary.to_json())
        other = Embedded.load(tmp_path)
        assert torch.equal(one.encode(TEXTS), other.encode(TEXTS))
        (tmp_path / VOCABULARY).write_text("{}")
        with pytest.raises(InputError, match="not a tokeniser"):
            Embedded.load(tmp_path)
        (tmp_path / VOCABULARY).unlink()
        with pytest.raises(InputError, match="not a sentence codec"):
            Embedded.load(tmp_path)


class _Encoder:
    """TextToEmbeddingModelPipeline of sonar-space 0.5: built by keywords, `predict(texts, source_lang)`."""

    def __init__(self, encoder: str, tokenizer: str, device: torch.device) -> None:
        assert encoder == tokenizer == "text_sonar_basic_encoder" and device == torch.device("cpu")

    def predict(self, texts: list[str], source_lang: str) -> Tensor:
        assert source_lang == "eng_Latn" and isinstance(texts, list)
        rows = [torch.tensor([float(b) for b in text.encode()[:1024]]) for text in texts]
        return torch.stack([torch.nn.functional.pad(row, (0, 1024 - len(row))) for row in rows])


class _Decoder:
    """EmbeddingToTextModelPipeline: `predict(vectors, target_lang, max_seq_len)`."""

    def __init__(self, decoder: str, tokenizer: str, device: torch.device) -> None:
        assert decoder == "text_sonar_basic_decoder" and tokenizer == "text_sonar_basic_encoder"

    def predict(self, inputs: Tensor, target_lang: str, max_seq_len: int) -> list[str]:
        assert target_lang == "eng_Latn" and max_seq_len == 512
        return [bytes(int(v) for v in row if v > 0).decode() for row in inputs]


@pytest.fixture
def sonar(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("sonar.inference_pipelines.text")
    module.TextToEmbeddingModelPipeline, module.EmbeddingToTextModelPipeline = _Encoder, _Decoder
    monkeypatch.setitem(sys.modules, "sonar", ModuleType("sonar"))
    monkeypatch.setitem(sys.modules, "sonar.inference_pipelines", ModuleType("sonar.inference_pipelines"))
    monkeypatch.setitem(sys.modules, "sonar.inference_pipelines.text", module)


@pytest.mark.usefixtures("sonar")
class TestSonar(CodecContract):
    def codec(self) -> Codec:
        return Sonar()

    def test_what_its_pipelines_return_is_passed_on(self) -> None:
        assert Sonar().decode(Sonar().encode(TEXTS)) == TEXTS


def test_without_its_package_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sonar", None)
    with pytest.raises(MissingExtra, match=r"pip install 'flops-fit\[sonar\]'"):
        Sonar()


# --- sentences as tokens --------------------------------------------------------------------------------------------


def test_any_text_comes_back_from_its_tokens() -> None:
    vocabulary = Vocabulary.learned(TEXTS * 5, 300)
    odd = ["A man rides.", "Ünïcödé 😀 too", "x" * 5, ""]
    assert vocabulary.decode(vocabulary.encode(odd, 64)) == odd
    assert len(vocabulary) <= 300
    again = Vocabulary.from_json(vocabulary.to_json())
    assert torch.equal(again.encode(odd, 64), vocabulary.encode(odd, 64))


def test_what_is_too_long_is_cut_and_ends() -> None:
    rows = Vocabulary.learned(TEXTS * 5, 300).encode(["A man rides a bicycle. " * 9], 8)
    assert rows.shape == (1, 8) and rows[0, -1] == 0 and bool((rows[0, :-1] != 0).all())


def test_sentences_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text("A man rides.\n\n  Two dogs play in the snow. \n")
    assert read_sentences(path) == ["A man rides.", "Two dogs play in the snow."]
    assert read_sentences(path, most_words=3) == ["A man rides."]
    with pytest.raises(InputError, match="holds no sentence of 2 words or fewer"):
        read_sentences(path, most_words=2)
    with pytest.raises(InputError, match="cannot be read as text"):
        read_sentences(tmp_path / "none.txt")
