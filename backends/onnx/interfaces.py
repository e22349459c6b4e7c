"""What the graphs take and give: the names and shapes that transformers and its relatives for ONNX have for them."""

from __future__ import annotations

from llamac.errors import LlamacError
from llamac.ir.graph import Graph, Value
from llamac.ir.types import TensorType

from .emitter import EMBEDS, IDS, LOGITS, MASK, POSITIONS, Emitter

CROSS_MASK = "cross_attention_mask"
"""Which tiles of which pictures a token sees, [batch, tokens, pictures, tiles]: what transformers' processor gives."""

PIXELS, SHAPES, FEATURES = "pixel_values", "aspect_ratio_ids", "image_features"

IMAGE_ROWS, IMAGE_EMBEDDINGS = "image_rows", "image_embeddings"
"""What a step with its own embedding takes of pictures: the row of each token among the embeddings, or -1."""

_STATES = {"past_k": "key", "past_v": "value", "cross_k": "key", "cross_v": "value"}


def cross_name(layer: str | int, side: str) -> str:
    """What the keys or values of vision tokens are called: an output of the encoder, an input of the decoder."""
    return f"cross_attn_key_values.{layer}.{side}"


def declare_text(e: Emitter) -> None:
    """What transformers' models take and give: ids, mask, positions, and the past of each layer; logits, and states.

    A decoder without its embedding takes embedded tokens, one with cross-attention what vision tokens are seen.
    """
    names = [argument.name for argument in e.graph.arguments]
    e.writer.place = "inputs"
    _declare_rows(e)
    e.writer.input(MASK, "INT64", ("batch", "total"))
    e.writer.input(POSITIONS, "INT64", ("batch", "tokens"))
    if "vision_start" in names:
        e.writer.input(CROSS_MASK, "INT64", ("batch", "tokens", "pictures", "tiles"))
    for argument in e.graph.arguments:
        if argument.name == "positions":
            e.bind(argument, POSITIONS)
        elif argument.name == IMAGE_ROWS:
            e.bind(argument, e.writer.input(IMAGE_ROWS, "INT64", ("batch", "tokens")))
        elif argument.name == IMAGE_EMBEDDINGS:
            width = argument.tensor.shape[1]
            assert isinstance(width, int)
            e.bind(argument, e.writer.input(IMAGE_EMBEDDINGS, "FLOAT", ("images", width)))
        elif argument.name not in ("ids", EMBEDS, "vision_start", "vision_stop"):
            _declare_state(e, argument)
    _declare_results(e)


def _declare_rows(e: Emitter) -> None:
    """The new tokens: ids, or what was made of them."""
    names = {argument.name: argument for argument in e.graph.arguments}
    if EMBEDS in names:
        width = names[EMBEDS].tensor.shape[1]
        assert isinstance(width, int)
        e.rows = e.writer.input(EMBEDS, "FLOAT", ("batch", "tokens", width))
        e.bind(names[EMBEDS], EMBEDS)
    else:
        e.bind(names["ids"], e.writer.input(IDS, "INT64", ("batch", "tokens")))


def _declare_state(e: Emitter, argument: Value) -> None:
    """Keys or values of a layer: of the past, or of vision tokens."""
    part, _, layer = argument.name.partition(".")
    if part not in _STATES:
        reason = f"the step takes %{argument.name}, which has no place among the inputs of a text model"
        raise LlamacError("LLC0932", argument.name, reason, "export a text model")
    heads, size = _heads(argument.tensor)
    is_past = part.startswith("past")
    name = f"past_key_values.{layer}.{_STATES[part]}" if is_past else cross_name(layer, _STATES[part])
    length = "past" if is_past else "vision_tokens"
    e.bind(argument, e.writer.input(name, "FLOAT", ("batch", heads, length, size)))


def _declare_results(e: Emitter) -> None:
    """Logits, and what each layer hands on."""
    logits, *states = e.graph.outputs
    pasts = [a for a in e.graph.arguments if a.name.startswith("past_")]
    vocab = logits.tensor.shape[1]
    assert isinstance(vocab, int) and len(pasts) == len(states)
    rows: str | int = "tokens" if e.settings.logits == "all" else 1
    e.writer.output(LOGITS, "FLOAT", ("batch", rows, vocab))
    e.want(logits, LOGITS)
    for state, past in zip(states, pasts, strict=True):
        heads, size = _heads(state.tensor)
        name = e.name(past).replace("past_key_values", "present")
        e.writer.output(name, "FLOAT", ("batch", heads, "total", size))
        e.want(state, name)


def _heads(state: TensorType) -> tuple[int, int]:
    """KV heads and head size of a state [heads, length, head_dim]."""
    heads, _, size = state.shape
    assert isinstance(heads, int) and isinstance(size, int)
    return heads, size


def declare_embedding(e: Emitter) -> None:
    """Ids in, embedded tokens out: what a decoder without its embedding takes."""
    (ids,), (embedded,) = e.graph.arguments, e.graph.outputs
    width = embedded.tensor.shape[1]
    assert isinstance(width, int)
    e.bind(ids, e.writer.input(IDS, "INT64", ("batch", "tokens")))
    e.writer.output(EMBEDS, "FLOAT", ("batch", "tokens", width))
    e.want(embedded, EMBEDS)


def declare_tiles(e: Emitter) -> None:
    """Tiles in, the rows that take the places of their tokens out: the batch is one of tiles."""
    (pixels,), (features,) = e.graph.arguments, e.graph.outputs
    e.bind(pixels, e.writer.input(PIXELS, "FLOAT", ("tiles", *_sizes(pixels.tensor)[1:])))
    e.writer.output(FEATURES, "FLOAT", ("tiles", *_sizes(features.tensor)))
    e.want(features, FEATURES)


def declare_pictures(e: Emitter, projection: Graph) -> None:
    """Whole pictures in, keys and values of their tokens out: the graph's batch is that of all pictures."""
    w, (pixels, shape) = e.writer, e.graph.arguments
    w.place = "inputs"
    sizes = _sizes(pixels.tensor)
    given = w.input(PIXELS, "FLOAT", ("batch", "pictures", *sizes))
    e.bind(pixels, w.op("Reshape", given, w.constant([-1, *sizes])))
    shapes = w.input(SHAPES, "INT64", ("batch", "pictures"))
    e.bind(shape, w.op("Reshape", shapes, w.constant([-1, 1])))
    for argument, output in zip(_cross_arguments(projection), projection.outputs, strict=True):
        heads, size = _heads(output.tensor)
        w.output(argument, "FLOAT", ("batch", heads, "vision_tokens", size))
        e.want(output, argument)


def _cross_arguments(projection: Graph) -> list[str]:
    """The names of the outputs, by the layer that made them: keys, then values."""
    layers = []
    for output in projection.outputs:
        assert output.producer is not None
        layers.append(output.producer.location.split(".")[1])
    return [cross_name(layer, ("key", "value")[place % 2]) for place, layer in enumerate(layers)]


def join_pictures(e: Emitter, projection: Graph) -> None:
    """All tokens of all pictures of one sequence, side by side: what the projection begins with."""
    w, (tokens,), (encoded,) = e.writer, projection.arguments, e.graph.outputs
    width = tokens.tensor.shape[1]
    assert isinstance(width, int)
    w.place = "vision.tokens"
    shape = w.op("Concat", w.op("Shape", PIXELS, start=0, end=1), w.constant([-1, width]), axis=0)
    e.bind(tokens, w.op("Reshape", e.name(encoded), shape))


def _sizes(t: TensorType) -> list[int]:
    found = [d for d in t.shape if isinstance(d, int)]
    assert len(found) == t.rank
    return found
