"""The two sentence classifiers of the example, each with torch's layers or with seqkernels'.

A pair built by `build_pair` computes the same function from the same weights: only the layer
between embedding and dropout is another implementation. Parameter names agree, so a `state_dict`
moves between the two with `strict=True`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import seqkernels.nn
from review_data import PADDING

IMPLEMENTATIONS = ("torch", "seqkernels")
EMBEDDING_SIZE = 300
FILTER_LENGTHS = (3, 4, 5)
FILTERS = 100
HIDDEN_SIZE = 128
DROPOUT = 0.5


class TorchConvolutionBank(nn.ModuleList):
    """Kim's bank of filters in torch's layers: (N, L, C) -> (N, filter lengths * filters).

    This is the fastest in training of torch's ways measured: one transposed copy for all filters
    rather than none, `max_pool1d` rather than `amax` or `max`, and ReLU after the pooling.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: tuple[int, ...]) -> None:
        super().__init__(nn.Conv1d(in_channels, out_channels, size) for size in kernel_sizes)

    def forward(self, input: Tensor) -> Tensor:
        channels_first = input.transpose(1, 2).contiguous()
        pooled = []
        for convolution in self:
            features = convolution(channels_first)
            pooled.append(nn.functional.max_pool1d(features, features.shape[2]).squeeze(2))
        return torch.cat(pooled, dim=1).relu()


class SentenceClassifier(nn.Module):
    """What both classifiers share: embedding, dropout and the linear layer on a sentence vector.

    Word vectors start uniform in [-0.25, 0.25] and are trained; the padding's stays zero.
    """

    def __init__(self, vocabulary_size: int, sentence_size: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, EMBEDDING_SIZE, padding_idx=PADDING)
        with torch.no_grad():
            self.embedding.weight.uniform_(-0.25, 0.25)[PADDING] = 0
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(sentence_size, classes)

    def sentence_vector(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """(N, L, C) and lengths (N,) -> (N, sentence_size)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (N, L) and lengths (N,) -> logits (N, classes)."""
        vector = self.sentence_vector(self.embedding(tokens), lengths)
        return self.linear(self.dropout(vector))


class SentenceCNN(SentenceClassifier):
    """The CNN-rand of Kim, "Convolutional neural networks for sentence classification" (2014).

    Sentences must be padded to the longest filter at least. The padding's zero vectors take part
    in the convolution, in both implementations alike.
    """

    def __init__(self, vocabulary_size: int, classes: int, implementation: str) -> None:
        super().__init__(vocabulary_size, len(FILTER_LENGTHS) * FILTERS, classes)
        if implementation == "torch":
            self.bank = TorchConvolutionBank(EMBEDDING_SIZE, FILTERS, FILTER_LENGTHS)
        else:
            self.bank = seqkernels.nn.Conv1dMaxPoolBank(
                EMBEDDING_SIZE, FILTERS, FILTER_LENGTHS, activation="relu", channels_last=True
            )

    def sentence_vector(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        return self.bank(embedded)


class SentenceLSTM(SentenceClassifier):
    """Many to one: the state of a one-layer LSTM after a sentence's last word.

    With torch's layer, the LSTM runs over the padded batch and each sentence's last state is
    gathered from its output. For batches of similar lengths this was faster when measured than
    `pack_padded_sequence`, which leaves the padding out.
    """

    def __init__(self, vocabulary_size: int, classes: int, implementation: str) -> None:
        super().__init__(vocabulary_size, HIDDEN_SIZE, classes)
        self.implementation = implementation
        layers = nn if implementation == "torch" else seqkernels.nn
        self.lstm = layers.LSTM(EMBEDDING_SIZE, HIDDEN_SIZE, batch_first=True)

    def sentence_vector(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        if self.implementation == "torch":
            output, _ = self.lstm(embedded)
            return output[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        _, (h_n, _) = self.lstm(embedded, lengths=lengths)
        return h_n[-1]


MODELS = {"cnn": SentenceCNN, "lstm": SentenceLSTM}


def build_pair(
    model: str, vocabulary_size: int, classes: int, seed: int
) -> dict[str, SentenceClassifier]:
    """The model in both implementations, with equal weights."""
    torch.manual_seed(seed)
    stock, fused = (
        MODELS[model](vocabulary_size, classes, implementation)
        for implementation in IMPLEMENTATIONS
    )
    fused.load_state_dict(stock.state_dict())
    return {"torch": stock, "seqkernels": fused}


@torch.no_grad()
def nudge(module: nn.Module, seed: int) -> None:
    """Changes the last bit of about half of the weights; a weight that is zero stays so."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        chosen = torch.randint(0, 2, parameter.shape, generator=generator, dtype=torch.bool)
        parameter.copy_(torch.where(chosen, torch.nextafter(parameter, 2 * parameter), parameter))
