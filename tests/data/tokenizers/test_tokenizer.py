"""Every tokenizer gives back the text it was given; the same vocabulary gives the same ids in any library."""

import json
import os
import random

import numpy as np
import pytest
import tiktoken
import tokenizers
from tiktoken_ext import openai_public

from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.config import (
    BPEConfig,
    ByteConfig,
    CharConfig,
    GPT2Config,
    TokenizerConfig,
    TokenizerFileConfig,
    WordPieceConfig,
)
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.gpt2 import GPT2Tokenizer
from gptlab.data.tokenizers.tokenizer import from_portable, load_tokenizer

HAS_GPT2 = bool(os.environ.get("TIKTOKEN_CACHE_DIR"))
needs_gpt2 = pytest.mark.skipif(not HAS_GPT2, reason="TIKTOKEN_CACHE_DIR is not set: no GPT-2 vocabulary at hand")
PROSE = (
    "It was the best of times; it's the worst of times, we'll say. 1789 and 42!\n\n"
    "    def f(x):\n\treturn x ** 2  # naïve café — 東京 🙂\r\n"
) * 30
SPACES = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u3000"


def awkward(seed, length=3000):
    """Text that changes between words, spaces of all kinds, quotes, marks and digits every few characters."""
    rng = random.Random(seed)
    alphabets = [
        "abcXYZäßжあ漢",
        SPACES,
        " \n",
        "'",
        "0123456789٣½",
        '.,;:!?()[]{}<>|#*-_=+"\\/',
        "\u0301\u200d🙂\U0001f468\x00\x07",
        "tsdmrevl",
    ]
    return "".join(rng.choice(rng.choice(alphabets)) * rng.choice((1, 1, 1, 2, 5)) for _ in range(length))


def random_code_points(seed, length=3000):
    rng = random.Random(seed)
    points = (
        rng.choice((rng.randrange(0x300), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))
        for _ in range(length)
    )
    return "".join(map(chr, points))


TEXTS = ["", " ", "\n", "a", "<|endoftext|>", "x <|endoftext|> y</s>", PROSE, awkward(0), random_code_points(0)]


@pytest.fixture(scope="module")
def library():
    """A byte-level BPE of the `tokenizers` library, trained here."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    trained.train_from_iterator([PROSE, awkward(5)], trainer)
    return trained


@pytest.fixture(scope="module")
def made(library):
    everything = "".join(TEXTS)
    tokenizers_by_name = {
        "byte": ByteTokenizer(),
        "char": CharTokenizer.build([everything]),
        "bpe": BPETokenizer.train(600, [PROSE, awkward(1)]),
        "file": FileTokenizer(library.to_str()),
    }
    return tokenizers_by_name | ({"gpt2": GPT2Tokenizer()} if HAS_GPT2 else {})


KINDS = ["byte", "char", "bpe", "file", pytest.param("gpt2", marks=needs_gpt2)]


@pytest.mark.parametrize("name", KINDS)
def test_round_trip(made, name):
    tokenizer = made[name]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids.ndim == 1 and ids.dtype.kind in "iu"
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids.tolist()) == text
        if ids.size:
            assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
            assert tokenizer.eot is None or tokenizer.eot not in ids


@pytest.mark.parametrize("name", KINDS)
def test_saved_and_loaded_is_the_same(made, name, tmp_path):
    tokenizer = made[name]
    tokenizer.save(tmp_path / "t.json")
    for other in (load_tokenizer(tmp_path / "t.json"), from_portable(json.loads(json.dumps(tokenizer.portable())))):
        assert (other.vocab_size, other.eot) == (tokenizer.vocab_size, tokenizer.eot)
        for text in TEXTS:
            assert np.array_equal(other.encode(text), tokenizer.encode(text))
    assert load_tokenizer(tmp_path / "t.json").fingerprint == tokenizer.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize("name", KINDS)
def test_chunk_by_chunk_gives_the_ids_of_the_whole(made, name):
    tokenizer = made[name]
    rng = random.Random(2)
    for text in (*TEXTS, awkward(0)[::-1] if name != "char" else awkward(0)):
        whole = tokenizer.encode(text).tolist()
        for size in (1, 7, 60):
            pieces, rest = [], text
            while rest:
                at = rng.randint(1, size)
                pieces.append(rest[:at])
                rest = rest[at:]
            chunks = list(tokenizer.chunks(pieces))
            assert "".join(chunks) == text
            assert [number for chunk in chunks for number in tokenizer.encode(chunk).tolist()] == whole


def test_large_texts_are_cut(made):
    pieces = [PROSE] * 50
    assert len(list(made["bpe"].chunks(pieces))) >= 50
    assert list(made["bpe"].chunks(["x" * 1000] * 5)) == ["x" * 5000]


def test_fingerprints_tell_vocabularies_apart(made):
    others = [BPETokenizer.train(599, [PROSE, awkward(1)]), CharTokenizer.build(["ab"]), CharTokenizer.build(["ac"])]
    fingerprints = [tokenizer.fingerprint for tokenizer in (*made.values(), *others)]
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(fingerprint) == 64 for fingerprint in fingerprints)


def test_byte():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é\n").tolist() == [0xC3, 0xA9, 10]
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    assert tokenizer.decode([256, 97, 256, 256, 0xC3]) == "<|endoftext|>a<|endoftext|><|endoftext|>\ufffd"
    assert tokenizer.decode([]) == ""


def test_char_is_in_the_order_of_code_points():
    tokenizer = CharTokenizer.build(["hello", " wörld"])
    assert tokenizer.characters == " dehlorwö"
    assert tokenizer.encode("ö e").tolist() == [8, 0, 2]
    assert tokenizer.eot is None
    for text, shown in (("hex", "'x' (U+0078)"), ("\U0001f642", r"'\U0001f642' (U+1F642)")):
        with pytest.raises(ValueError) as caught:
            tokenizer.encode(text)
        assert shown in str(caught.value) and "9 characters" in str(caught.value)


@pytest.mark.parametrize("name", ["byte", "bpe"])
def test_lone_surrogates_become_replacement_characters(made, name):
    assert made[name].decode(made[name].encode("a\ud800b")) == "a\ufffdb"


def test_characters_are_those_that_can_be_written(tmp_path):
    tokenizer = CharTokenizer.build(["a\ud800b"])
    assert tokenizer.characters == "ab\ufffd"
    assert tokenizer.encode("\udfffa").tolist() == [2, 0]
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").decode([1, 2]) == "b\ufffd"


@pytest.mark.parametrize("name", KINDS)
def test_ids_outside_the_vocabulary_are_refused(made, name):
    tokenizer = made[name]
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary"):
            tokenizer.decode([0, wrong])
    with pytest.raises(ValueError, match="integers"):
        tokenizer.decode(np.array([0.5]))


def test_bpe_gives_the_ids_of_the_library_that_trained_it(monkeypatch):
    kept = []
    made_by = tokenizers.Tokenizer

    def keep(model):
        kept.append(made_by(model))
        return kept[-1]

    monkeypatch.setattr(tokenizers, "Tokenizer", keep)
    ours = BPETokenizer.train(900, [PROSE, awkward(3)])
    (library,) = kept
    for seed in range(10):
        for text in (awkward(seed), random_code_points(seed), PROSE):
            assert ours.encode(text).tolist() == library.encode(text).ids


def test_the_split_is_that_of_gpt2(made):
    """The same ranks behind tiktoken's own spelling of GPT-2's pattern."""
    ours = made["bpe"]
    ranks = {word: rank for rank, word in enumerate(ours._vocabulary)}
    theirs = tiktoken.Encoding("x", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    for seed in range(40):
        for text in (awkward(seed, 800), random_code_points(seed, 800), PROSE):
            assert ours.encode(text).tolist() == theirs.encode_ordinary(text)
    for code in range(0x3100):
        text = f"a{chr(code)} {chr(code)}{chr(code)}'s" if not 0xD800 <= code < 0xE000 else ""
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)


def test_a_million_spaces(made):
    tokenizer = made["bpe"]
    n = 600_000
    short = tokenizer.encode("end" + "\n" * 3 + "x").tolist()
    for text in (" " * n, "end" + " " * n + "x", "\t" * n + " x", "end\n" + "\n" * 2 * n + "x\n" + " " * n):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    long = tokenizer.encode("end" + "\n" * n + "x").tolist()
    assert (long[:1], long[-2:]) == (short[:1], short[-2:])
    # Just under and over the length from which long runs are looked for.
    for length in (499_990, 499_999, 500_000, 500_010):
        text = "a" + " " * length + "b"
        pieces = ["a", " " * (length - 1), " b"]
        assert tokenizer.encode(text).tolist() == [n for piece in pieces for n in tokenizer.encode(piece).tolist()]


def test_bpe_training_is_deterministic_and_sized():
    first, second = (BPETokenizer.train(512, [PROSE, awkward(7)]) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert (first.vocab_size, first.eot) == (512, 511)
    assert BPETokenizer.train(257, [PROSE]).vocab_size == 257
    small = BPETokenizer.train(5000, ["ab ab"])
    assert 257 < small.vocab_size < 300
    assert small.decode(small.encode("zé")) == "zé"
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=256 is too small.*257"):
        BPETokenizer.train(256, [PROSE])


@needs_gpt2
def test_gpt2_is_tiktokens(made):
    theirs = tiktoken.get_encoding("gpt2")
    tokenizer = made["gpt2"]
    assert (tokenizer.vocab_size, tokenizer.eot) == (50_257, 50_256)
    assert tokenizer.encode("Every effort moves you").tolist() == [6109, 3626, 6100, 345]
    for text in (*TEXTS, *map(awkward, range(10)), *map(random_code_points, range(5))):
        assert tokenizer.encode(text).tolist() == theirs.encode_ordinary(text)
    assert tokenizer.decode([50_256]) == "<|endoftext|>"


def test_gpt2_out_of_reach_says_what_to_do(monkeypatch):
    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match=r"TIKTOKEN_CACHE_DIR.*tokenizer=bpe or tokenizer=byte"):
        GPT2Config().build(lambda: iter(()))


def test_file(library, tmp_path):
    path = tmp_path / "tokenizer.json"
    library.enable_truncation(5)
    library.enable_padding()
    library.save(str(path))
    library.no_truncation()
    library.no_padding()
    tokenizer = TokenizerFileConfig(path=str(path)).build(lambda: iter(()))
    assert (tokenizer.vocab_size, tokenizer.eot) == (library.get_vocab_size(), library.token_to_id("<|endoftext|>"))
    assert tokenizer.encode(PROSE).tolist() == library.encode(PROSE).ids
    named = TokenizerFileConfig(path=str(path), eot="!").build(lambda: iter(()))
    assert named.eot == library.token_to_id("!")
    assert named.fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    "config",
    [
        ByteConfig(special_tokens=["<mask>"], n_sentinel_tokens=3),
        CharConfig(),
        BPEConfig(vocab_size=300, n_sentinel_tokens=3),
        WordPieceConfig(vocab_size=100, n_sentinel_tokens=3),
    ],
    ids=lambda config: config.type,
)
def test_the_tokenizer_of_a_run_is_read_again(config, tmp_path):
    learned = config.build(lambda: iter([PROSE]))
    learned.save(tmp_path / "tokenizer.json")
    again = TokenizerFileConfig(path=str(tmp_path / "tokenizer.json"), n_sentinel_tokens=config.n_sentinel_tokens)
    again.check()
    read = again.build(lambda: pytest.fail("nothing is learned"))
    assert read.fingerprint == learned.fingerprint
    assert read.encode(PROSE).tolist() == learned.encode(PROSE).tolist()
    assert (read.sentinels, read.specials) == (learned.sentinels, learned.specials)


def test_the_tokenizer_of_a_run_is_refused_where_it_cannot_serve(tmp_path):
    path = tmp_path / "tokenizer.json"
    ByteTokenizer(["<extra_id_0>"]).save(path)

    def refused(match, **settings):
        with pytest.raises(ValueError, match=rf"tokenizer\.path={path}.*{match}"):
            TokenizerFileConfig(path=str(path), **settings).build(lambda: iter(()))

    refused(r"takes no tokenizer\.eot=<s>; leave it out", eot="<s>")
    refused(r"has 1 sentinel token .*; set tokenizer\.n_sentinel_tokens=1, or", n_sentinel_tokens=2)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"fingerprint": "0"}))
    refused("was altered.*as the run wrote it")
    path.write_text(json.dumps(content | {"type": "runes"}))
    refused("type=runes is unknown")
    path.write_text("[1]")
    refused("neither a tokenizer.json of the tokenizers library nor of a run")


def test_file_errors_name_the_setting(library, tmp_path):
    def build(**settings):
        return TokenizerFileConfig(**settings).build(lambda: iter(()))

    with pytest.raises(ValueError, match=r"tokenizer\.path is not set"):
        build()
    with pytest.raises(ValueError, match=r"tokenizer\.path=/no/such\.json does not exist"):
        build(path="/no/such.json")
    with pytest.raises(ValueError, match=r"tokenizer\.path=.* cannot be read"):
        build(path=str(tmp_path))
    broken = tmp_path / "broken.json"
    for content in (b"", b"{}", b"not json", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=rf"tokenizer\.path={broken}.*tokenizer\.json"):
            build(path=str(broken))
    library.save(str(broken))
    with pytest.raises(ValueError, match=r"tokenizer\.eot=<none> is not in its vocabulary"):
        build(path=str(broken), eot="<none>")


def test_build_learns_from_the_texts_it_is_given():
    def texts():
        return iter([PROSE, "q"])

    assert ByteConfig().build(texts).type == "byte"
    assert "q" in CharConfig().build(texts).characters
    assert BPEConfig(vocab_size=300).build(texts).vocab_size == 300
    with pytest.raises(NotImplementedError, match="TokenizerConfig has no build method"):
        TokenizerConfig().build(texts)


def test_altered_files_are_refused(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(path)
    BPETokenizer.train(300, [PROSE]).save(path)
    content = json.loads(path.read_text())
    for change in (
        {"vocabulary": content["vocabulary"][:-1]},
        {"vocabulary": [*content["vocabulary"][:-1], "!"]},
        {"vocabulary": 5},
        {"fingerprint": ""},
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match="delete it and run again"):
            load_tokenizer(path)
    for name in ("runes", None):
        path.write_text(json.dumps(content | {"type": name}))
        with pytest.raises(ValueError, match=rf"{path}: tokenizer\.type={name} is unknown.*plugins=\[MODULE\]"):
            load_tokenizer(path)
    for text in ("", "[]", "{}", json.dumps(content)[:100]):
        path.write_text(text)
        with pytest.raises(ValueError, match="delete it and run again"):
            load_tokenizer(path)


def test_saving_leaves_nothing_behind_on_an_error(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    ByteTokenizer().save(path)
    before = path.read_bytes()

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        CharTokenizer("ab").save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


ADDED = ["<mask>", "<pad>", "<cls>", "<sep>", "<|user|>"]


def added(name):
    settings = {"special_tokens": ADDED, "n_sentinel_tokens": 3}
    config = {
        "byte": ByteConfig(**settings),
        "char": CharConfig(**settings),
        "bpe": BPEConfig(vocab_size=300, **settings),
        "gpt2": GPT2Config(**settings),
    }[name]
    config.check()
    return config, config.build(lambda: iter(TEXTS))


OWN = ["byte", "char", "bpe", pytest.param("gpt2", marks=needs_gpt2)]


@pytest.mark.parametrize("name", OWN)
def test_special_tokens_follow_the_vocabulary(name, tmp_path):
    config, tokenizer = added(name)
    first = tokenizer.vocab_size - 8
    assert tokenizer.eot == (None if name == "char" else first - 1)
    assert config.known_vocab_size in (None, tokenizer.vocab_size) and (name == "char") == (tokenizer.eot is None)
    assert (tokenizer.mask, tokenizer.pad, tokenizer.cls, tokenizer.sep) == (first, first + 1, first + 2, first + 3)
    assert tokenizer.sentinels == (first + 5, first + 6, first + 7)
    assert tokenizer.specials == {*range(first, first + 8)} | ({tokenizer.eot} - {None})
    spelled = [*ADDED, "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    assert [tokenizer.decode([first + n]) for n in range(8)] == spelled
    text = "é a" + "".join(spelled)
    if name == "char":
        text = PROSE[:50]
    ids = tokenizer.encode(text)
    assert not tokenizer.specials & set(ids.tolist())
    assert tokenizer.decode([*ids, first, *ids, first + 7]) == f"{text}<mask>{text}<extra_id_2>"
    tokenizer.save(tmp_path / "t.json")
    for other in (load_tokenizer(tmp_path / "t.json"), from_portable(json.loads(json.dumps(tokenizer.portable())))):
        assert other.encode(text).tolist() == ids.tolist() and other.specials == tokenizer.specials
        assert (other.mask, other.sentinels, other.eot) == (tokenizer.mask, tokenizer.sentinels, tokenizer.eot)
    assert load_tokenizer(tmp_path / "t.json").fingerprint == tokenizer.fingerprint


def test_without_special_tokens_nothing_changes(tmp_path):
    """Fingerprints and folder names of before there were any."""
    known = {
        "byte": (ByteTokenizer(), "fb689f03361c74d3e23059748afa24663068e810fb9dd27deb405e8cf66aae35"),
        "char": (CharTokenizer("abc"), "5298e362fd513b65202f5e03a976ee0713a8550bd7efa140b0c68dd554e1038f"),
        "bpe": (
            BPETokenizer.train(300, ["the cat sat on the mat, the hat" * 9]),
            "7f60a891df77f78668cf524a94284875b4be8201b9cc30f74c4aa934131c89c2",
        ),
    }
    for name, (tokenizer, fingerprint) in known.items():
        assert tokenizer.fingerprint == fingerprint
        assert tokenizer.specials == {tokenizer.eot} - {None}
        assert tokenizer.mask is tokenizer.pad is tokenizer.cls is tokenizer.sep is None and tokenizer.sentinels == ()
        assert "special_tokens" not in tokenizer.portable()
        same = {"byte": ByteTokenizer, "char": lambda w: CharTokenizer("abc", w), "bpe": None}[name]
        if same is not None:
            assert len({tokenizer.fingerprint, same(["<x>"]).fingerprint, same(["<y>"]).fingerprint}) == 3
            assert same([]).fingerprint == fingerprint


def test_the_vocab_size_of_a_bpe_counts_its_special_tokens():
    plain = BPETokenizer.train(300, [PROSE])
    tokenizer = BPETokenizer.train(300, [PROSE], ADDED)
    assert tokenizer.vocab_size == 300 and tokenizer.eot == plain.eot - len(ADDED)
    assert tokenizer.portable()["vocabulary"] == plain.portable()["vocabulary"][: -len(ADDED)]
    with pytest.raises(ValueError, match=r"256 bytes and 6 special tokens need 262"):
        BPETokenizer.train(260, [PROSE], ADDED)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (ByteConfig(special_tokens=["<a>", "<a>"]), r"special_tokens holds '<a>' twice"),
        (
            ByteConfig(special_tokens=["<extra_id_0>"], n_sentinel_tokens=1),
            r"special_tokens holds '<extra_id_0>' twice",
        ),
        (ByteConfig(special_tokens=[""]), r"special_tokens holds an empty token"),
        (ByteConfig(n_sentinel_tokens=-1), r"n_sentinel_tokens=-1 must be at least 0"),
        (
            BPEConfig(vocab_size=260, n_sentinel_tokens=9),
            r"vocab_size=260 must be at least 266: the bytes and 10",
        ),
        (TokenizerFileConfig(path="x", special_tokens=["<a>"]), r"=file has its own .*special_tokens=\[<a>\]"),
        (TokenizerFileConfig(path="x", n_sentinel_tokens=-2), r"n_sentinel_tokens=-2 must be at least 0"),
        (WordPieceConfig(special_tokens=["<a>"]), r"=wordpiece has its own special tokens \(\[PAD\]"),
        (WordPieceConfig(vocab_size=6), r"vocab_size=6 must be at least 7: 5 special tokens and a character"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(config, why):
    with pytest.raises(ValueError, match=rf"^tokenizer\.?{why}"):
        config.check()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (ByteConfig(special_tokens=["a"]), "'a'"),
        (ByteConfig(special_tokens=["<|endoftext|>"]), r"'<\|endoftext\|>'"),
        (CharConfig(special_tokens=["é"]), "'é'"),
        (BPEConfig(vocab_size=300, special_tokens=[" the"]), "' the'"),
    ],
)
def test_a_special_token_of_the_vocabulary_is_refused(config, word):
    with pytest.raises(ValueError, match=rf"special_tokens holds {word}, which is in the vocabulary already"):
        config.build(lambda: iter([PROSE]))


@pytest.mark.parametrize(
    ("names", "eot"),
    [
        (("[MASK]", "[PAD]", "[CLS]", "[SEP]"), "[SEP]"),
        (("<mask>", "<pad>", "<s>", "</s>"), "</s>"),
        (("<mask>", "<pad>", "<cls>", "<sep>"), None),
    ],
)
def test_a_files_special_tokens_are_found_by_their_usual_names(names, eot):
    vocabulary = ["<unk>", "a", *names, "<extra_id_1>", "<extra_id_0>", "<extra_id_3>", "<|user|>"]
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    library.add_special_tokens(["<|user|>"])
    tokenizer = FileTokenizer(library.to_str())
    assert (tokenizer.mask, tokenizer.pad, tokenizer.cls, tokenizer.sep) == (2, 3, 4, 5)
    assert tokenizer.sentinels == (7, 6) and tokenizer.eot == (None if eot is None else vocabulary.index(eot))
    assert tokenizer.specials == {0, 2, 3, 4, 5, 6, 7, 9}


def test_the_beginning_is_what_the_library_puts_before_a_text(library):

    eot = ("<|endoftext|>", library.token_to_id("<|endoftext|>"))
    (a, b), parts = [("!", library.token_to_id("!")), ("?", library.token_to_id("?"))], tokenizers.processors

    def template(single):
        return parts.TemplateProcessing(single=single, special_tokens=[eot, a, b])

    plain = FileTokenizer(library.to_str())
    assert plain.beginning == ()
    for processor, expected in (
        (parts.ByteLevel(trim_offsets=True), []),
        (template("! $A"), [a]),
        (template("! ? $A ?"), [a, b]),
        (template("$A ?"), []),
        (parts.BertProcessing(b, a), [a]),
        (parts.RobertaProcessing(b, a), [a]),
        (parts.Sequence([parts.ByteLevel(), template("! $A")]), [a]),
        (parts.Sequence([template("! $A"), template("? $A")]), [a]),
    ):
        copy = tokenizers.Tokenizer.from_str(library.to_str())
        copy.post_processor = processor
        tokenizer = FileTokenizer(copy.to_str())
        assert tokenizer.beginning == tuple(number for _, number in expected)
        whole, bare = copy.encode("word").ids, tokenizer.encode("word").tolist()
        assert whole[: len(expected) + len(bare)] == [*tokenizer.beginning, *bare]
        assert bare == plain.encode("word").tolist()  # what training reads
