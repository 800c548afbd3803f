"""A Llama whose tokenizer begins each text with a word, and whose texts may end with one of several."""

import json

import pytest
import torch
import transformers
from interop.external import Case, llama
from small_runs import small_run
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from gptlab.cli import convert, generate
from gptlab.data.tokenizers.config import TokenizerFileConfig
from gptlab.data.tokenizers.tokenizer import load_tokenizer
from gptlab.generation.scoring import score
from gptlab.interop.special_tokens import chat_template
from gptlab.interop.transformers_folder import TransformersFolder
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.load import load_model
from gptlab.training.loop import train

PROMPT = "It was the"
ENDS = [2, 40]


@pytest.fixture
def folder(tmp_path):
    """As the released Llama 2 is: <s> before each text, bytes as fallback tokens, and no embeddings to spare."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127))]
    library = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    library.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    case = Case("LlamaConfig", llama(vocab_size=len(words), max_position_embeddings=64, bos_token_id=1, eos_token_id=2))
    model = case.model()
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(tmp_path / "theirs")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=library, **special).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def continued(folder, max_new_tokens=20) -> list[int]:
    """What transformers generates after the prompt, greedily."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = transformers.AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    tokens = prompt["input_ids"]
    written = model.generate(
        tokens, attention_mask=prompt["attention_mask"], do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0
    )
    return written[0, tokens.shape[1] :].tolist()


def written(capsys, where, *options) -> dict:
    given = [f"run={where}", f"prompt={PROMPT}", "temperature=0", "max_new_tokens=20", "output=json", *options]
    assert generate.main(given) == 0
    return json.loads(capsys.readouterr().out)["results"][0]


def special_tokens_of(folder) -> dict:
    names = {"config.json": "token_id", "generation_config.json": "token_id", "tokenizer_config.json": "_token"}
    return {
        name: {key: value for key, value in json.loads((folder / name).read_text()).items() if key.endswith(end)}
        for name, end in names.items()
    }


def test_in_and_out_again_generates_the_same(folder, tmp_path, capsys):
    expected = continued(folder)
    assert convert.main([f"from={folder}", f"to={tmp_path / 'ours'}"]) == 0
    assert convert.main([f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}"]) == 0
    capsys.readouterr()
    for where in (folder, tmp_path / "ours", tmp_path / "back"):
        assert written(capsys, where)["tokens"] == expected, where
    assert continued(tmp_path / "back") == expected
    first, again = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "back"))
    assert first.special_tokens_map == again.special_tokens_map and len(first.special_tokens_map) == 3
    assert first(PROMPT)["input_ids"] == again(PROMPT)["input_ids"]
    assert special_tokens_of(folder) == special_tokens_of(tmp_path / "back")
    assert special_tokens_of(folder)["generation_config.json"]["eos_token_id"] == ENDS


TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"


@pytest.mark.parametrize("inline", [True, False])
def test_the_chat_template_goes_in_and_out_again(folder, tmp_path, inline):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if inline:
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    else:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert convert.main([f"from={folder}", f"to={tmp_path / 'ours'}"]) == 0
    assert convert.main([f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}"]) == 0
    saved = checkpoint.load(tmp_path / "ours" / "checkpoints" / "last.ckpt")
    assert chat_template(saved.state.special_tokens) == TEMPLATE
    chat = [{"role": "user", "content": "It was"}]
    texts = [
        transformers.AutoTokenizer.from_pretrained(path).apply_chat_template(chat, tokenize=False)
        for path in (folder, tmp_path / "back")
    ]
    assert texts[0] == texts[1] == "[user] It was\n"


def test_each_end_token_ends_a_text(folder, tmp_path, capsys):
    file = folder / "generation_config.json"
    plain = continued(folder)
    end = next(token for token in plain[4:] if token not in plain[:4])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, end]}))
    assert convert.main([f"from={folder}", f"to={tmp_path / 'ours'}"]) == 0
    capsys.readouterr()
    for where in (folder, tmp_path / "ours"):
        found = written(capsys, where)
        assert found["tokens"] == plain[: plain.index(end) + 1] == continued(folder)
        assert found["finished"] == "end_of_text"
        assert load_model(str(where)).ends == {2, end}


def test_ids_stay_without_a_tokenizer_and_one_can_be_given_later(folder, tmp_path, capsys):
    expected, ids = continued(folder), special_tokens_of(folder)
    tokenizer = (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert convert.main([f"from={folder}", f"to={tmp_path / 'ours'}"]) == 0
    assert convert.main([f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}"]) == 0
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "back" / name).read_text())
        assert {key: content[key] for key in ids[name]} == ids[name]
    assert generate.main([f"run={tmp_path / 'ours'}", "prompt=a"]) == 2
    assert "put the tokenizer.json there" in capsys.readouterr().err
    tokenizer.rename(tmp_path / "ours" / "tokenizer.json")
    assert written(capsys, tmp_path / "ours")["tokens"] == expected


def test_the_beginning_is_scored_from(folder):
    model, tokenizer, _ = load_model(str(folder))
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        log_p = theirs(ids).logits[0, :-1].log_softmax(-1)
    result = score(model, tokenizer, PROMPT)
    assert result.tokens == ids[0, 1:].tolist() and result.n_bytes == len(PROMPT)
    assert result.nats == pytest.approx((-log_p.gather(1, ids[0, 1:, None])[:, 0]).tolist(), abs=1e-4)


def test_a_model_that_never_read_the_beginning_is_not_given_it(folder, tmp_path, capsys):
    """Training with this tokenizer puts the end-of-text token before a text; so does what is exported."""
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 200)
    shape = DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=32)
    tokenizer = TokenizerFileConfig(path=str(folder / "tokenizer.json"))
    run = tmp_path / "run"
    train(small_run(run, model=shape, tokenizer=tokenizer))
    capsys.readouterr()
    assert load_tokenizer(run / "tokenizer.json").beginning == (1,)
    assert load_model(str(run)).tokenizer.beginning == ()
    found = written(capsys, run)["tokens"]
    assert convert.main([f"from={run}", f"to={tmp_path / 'out'}"]) == 0
    assert continued(tmp_path / "out") == found
    begun = TransformersFolder(folder).tokenizer()
    assert (
        begun.beginning == (1,)
        and begun.encode(PROMPT).tolist() == load_model(str(run)).tokenizer.encode(PROMPT).tolist()
    )


@pytest.mark.parametrize(
    "file, key, value, message",
    [
        ("tokenizer_config.json", "eos_token", {"x": 1}, r"tokenizer_config\.json: eos_token={.* must be a token"),
        ("generation_config.json", "eos_token_id", [2, "x"], r"generation_config\.json: eos_token_id=.* whole number"),
        ("tokenizer_config.json", "chat_template", 3, r"chat_template=3 must be a Jinja template"),
        ("config.json", "bos_token_id", 1.5, r"config\.json: bos_token_id=1\.5 must be a whole number"),
    ],
)
def test_wrong_values_are_named(folder, file, key, value, message):
    content = json.loads((folder / file).read_text()) | {key: value}
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        TransformersFolder(folder).special_tokens  # noqa: B018
