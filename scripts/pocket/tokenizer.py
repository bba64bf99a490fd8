"""Build the pocket tokenizer: a Unigram vocabulary of the grammar's words with single characters to fall back
on.

It behaves like the T5 family's tokenizers where the engine cares: `<pad>` is 0, `</s>` is 1 and closes every
prompt, `<unk>` is 2. Words of the grammar are one token; any other word is spelled, so every prompt runs.
"""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scripts.pocket.prompts import Grammar

TEXT_LENGTH = 64
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
WORD_SCORE = -1.0
CHARACTER_SCORE = -10.0


def build_tokenizer(grammar: Grammar) -> PreTrainedTokenizerFast:
    """Return the tokenizer; prompts are lower-cased and accents are removed inside it."""
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS]
    vocabulary += [("▁" + word, WORD_SCORE) for word in grammar.words()]
    known = {token for token, _ in vocabulary}
    characters = ["▁", *string.ascii_lowercase, *string.digits, *string.punctuation]
    characters += ["▁" + character for character in string.ascii_lowercase + string.digits]
    vocabulary += [(token, CHARACTER_SCORE) for token in characters if token not in known]

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(r"[^▁\p{L}\p{N}]"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        padding_side="right",
        truncation_side="right",
    )
