"""Wrong kernels of sampling; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
SURVIVORS = {"mass": ("survivors",)}


def counted(tokens, logits):
    """How often each token is in the lists, float32; nothing for None."""
    counts = torch.zeros(len(logits), logits.shape[1] + 1, device=logits.device)
    if tokens is not None:
        counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=torch.float32))
    return counts[:, :-1]


def ends_with(inputs, request, begun, padded):
    """Whether the output of a request ends with some tokens; ``padded``: whether what fills its row is taken for it."""
    if not begun:
        return True
    if inputs.output is None:
        return False
    past = inputs.output[request].tolist()
    if not padded:
        past = [token for token in past if token < inputs.logits.shape[1]]
    return len(past) >= len(begun) and past[-len(begun) :] == list(begun)


def allowed(inputs, padded=False):
    """Logits in float32 that grammars and bad words leave."""
    logits = inputs.logits.float().clone()
    for request, words in enumerate(inputs.bad_words):
        for word in words:
            if ends_with(inputs, request, word[:-1], padded):
                logits[request, word[-1]] = -torch.inf
    if inputs.bitmask is not None:
        token = torch.arange(logits.shape[1], device=logits.device)
        logits[((inputs.bitmask[:, token // 32] >> (token % 32).to(torch.int32)) & 1) == 0] = -torch.inf
    return logits


def penalised(inputs, logits):
    generated, given = counted(inputs.output, logits), counted(inputs.prompt, logits)
    if inputs.repetition is not None:
        factor = torch.where(generated + given > 0, inputs.repetition.unsqueeze(1), 1.0)
        logits = torch.where(logits > 0, logits / factor, logits * factor)
    if inputs.frequency is not None:
        logits = logits - inputs.frequency.unsqueeze(1) * generated
    if inputs.presence is not None:
        logits = logits - inputs.presence.unsqueeze(1) * (generated > 0)
    return logits


def scaled(inputs, logits):
    if inputs.temperature is None:
        return logits
    return logits / torch.where(inputs.temperature == 0, 1.0, inputs.temperature).unsqueeze(1)


def filtered(inputs, logits, above=False):
    """What min-p, top-k and top-p leave, each of what the one before left; ``above``: whether top-k takes its limit."""
    if inputs.min_p is not None:
        limit = logits.amax(dim=1, keepdim=True) + inputs.min_p.log().unsqueeze(1)
        logits = logits.masked_fill(logits < limit, -torch.inf)
    values, index = logits.sort(dim=1)
    if inputs.top_k is not None:
        limit = values.gather(1, (values.shape[1] - inputs.top_k.long()).unsqueeze(1))
        gone = (values <= limit) & (values < values[:, -1:]) if above else values < limit
        values = values.masked_fill(gone, -torch.inf)
    if inputs.top_p is not None:
        gone = values.softmax(dim=1).cumsum(dim=1) <= 1 - inputs.top_p.unsqueeze(1)
        gone[:, -1] = False
        values = values.masked_fill(gone, -torch.inf)
    return torch.empty_like(values).scatter(1, index, values)


def results(inputs, logits, greedy=None):
    """What is left, and the token that is drawn of it; ``greedy``: which requests take the most likely one."""
    kept = logits > -torch.inf
    outputs = {"kept": kept.to(torch.int8), "logits": logits.masked_fill(~kept, 0.0), "count": kept.sum(dim=1)}
    if inputs.exponential is not None:
        token = (logits.softmax(dim=1) / inputs.exponential).argmax(dim=1)
        if inputs.temperature is not None:
            greedy = inputs.temperature == 0 if greedy is None else greedy
            token = torch.where(greedy, logits.argmax(dim=1), token)
        outputs["token"] = token
    return outputs


@npudiff.implementation("sampling", name="h_sampling_01_above_the_last_of_top_k", supports=SURVIVORS, on_device=True)
def above_the_last_of_top_k(inputs, target):
    """Tokens stay that are above the last of the top-k, which goes itself; shows for each top-k but 1."""
    logits = scaled(inputs, penalised(inputs, allowed(inputs)))
    return results(inputs, filtered(inputs, logits, above=not TWIN))


@npudiff.implementation("sampling", name="h_sampling_02_penalties_of_scaled_logits", supports=SURVIVORS, on_device=True)
def penalties_of_scaled_logits(inputs, target):
    """Penalties are taken off logits that the temperature has scaled; shows with one, in tokens of the output."""
    logits = allowed(inputs)
    logits = scaled(inputs, penalised(inputs, logits)) if TWIN else penalised(inputs, scaled(inputs, logits))
    return results(inputs, filtered(inputs, logits))


@npudiff.implementation("sampling", name="h_sampling_03_greedy_if_all_are", supports=SURVIVORS, on_device=True)
def greedy_if_all_are(inputs, target):
    """The most likely tokens are taken if all requests are greedy; among others a greedy request draws."""
    logits = filtered(inputs, scaled(inputs, penalised(inputs, allowed(inputs))))
    greedy = None
    if inputs.temperature is not None and not TWIN:
        greedy = (inputs.temperature == 0).all().expand(len(logits))
    return results(inputs, logits, greedy)


@npudiff.implementation(
    "sampling", name="h_sampling_04_bad_words_at_the_end_of_the_row", supports=SURVIVORS, on_device=True
)
def bad_words_at_the_end_of_the_row(inputs, target):
    """The beginning of a bad word is looked for at the end of the row of outputs, filled or not; shows for words of
    several tokens in requests with fewer outputs than others."""
    logits = scaled(inputs, penalised(inputs, allowed(inputs, padded=not TWIN)))
    return results(inputs, filtered(inputs, logits))
