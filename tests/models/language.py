"""Token models: an LSTM, Hugging Face's GPT-2 with shifted labels, a contrastive and a T5 one."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from stepbench.training import Workload
from tests.models.frozen import Points

WORDS, LENGTH = 128, 16


def _tokens(point, label):
    tokens = (point.abs()[:LENGTH] * 50).long() % WORDS
    return tokens, tokens.roll(-1)


class Lstm(nn.Module):
    """Its last layer is called `fc`."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, 32), nn.LSTM(32, 64, 2, batch_first=True)
        self.fc = nn.Linear(64, WORDS)

    def forward(self, tokens):
        return self.fc(self.lstm(self.words(tokens))[0])


def _cross_entropy(logits, targets):
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def lstm():
    return Workload(
        model=Lstm, dataset=lambda: Points(_tokens), loss=_cross_entropy, global_batch=8
    )


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    )  # fmt: skip


def gpt2():
    """The model shifts its labels by itself: of each sample's tokens all but one are predicted."""
    return Workload(
        model=_gpt2,
        dataset=lambda: Points(lambda point, label: {"input_ids": _tokens(point, label)[0]}),
        call=lambda model, batch: model(**batch, labels=batch["input_ids"]).loss,
        loss=None,
        loss_terms=lambda batch: batch["input_ids"][:, 1:].numel(),
        blocks=lambda model: list(model.transformer.h),
        global_batch=8,
    )


def _without_decay_of_vectors(model):
    """Groups by name and shape, as nanoGPT's `configure_optimizers` makes them."""
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    decayed = [one for name, one in named if one.dim() >= 2 and "wpe" not in name]
    others = [one for name, one in named if one.dim() < 2 or "wpe" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-4)


def gpt2_in_groups():
    return replace(gpt2(), optimizer=_without_decay_of_vectors)


def _t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=WORDS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0, use_cache=False,
        )
    )  # fmt: skip


def t5():
    """Encoder and decoder: a checkpointed block must be called by the model as it is listed."""
    return Workload(
        model=_t5,
        dataset=lambda: Points(
            lambda point, label: dict(
                zip(("input_ids", "labels"), _tokens(point, label), strict=True)
            )
        ),
        call=lambda model, batch: model(**batch).loss,
        loss=None,
        loss_terms=lambda batch: batch["labels"].numel(),
        blocks=lambda model: [*model.encoder.block, *model.decoder.block],
        global_batch=8,
    )


class Towers(nn.Module):
    """Two encoders whose outputs meet in one matrix of similarities (Radford et al. 2021)."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (
            nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)
        )

    def forward(self, pair):
        left, right = self.left(pair[0]), self.right(pair[1])
        return functional.normalize(left, dim=1) @ functional.normalize(right, dim=1).T


def contrastive():
    """Each pair is told from all others of its batch: a micro-batch is other mathematics."""
    return Workload(
        model=Towers,
        dataset=lambda: Points(lambda point, label: ((point, point.flip(0)), label)),
        loss=lambda scores, _: functional.cross_entropy(scores * 10, torch.arange(len(scores))),
        batch_dependent=True,
        global_batch=8,
    )
