"""Coded errors: every failure a user can meet has a code, a place in the model, a reason and a next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CODES: dict[str, str] = {
    "LLC0100": "internal error",
    "LLC0101": "bad value on the command line",
    "LLC0102": "no prompt to run",
    "LLC0103": "interrupted",
    "LLC0104": "unknown quantization scheme",
    "LLC0105": "--strict refused a decision",
    "LLC0106": "the source has no tokenizer",
    "LLC0107": "a compile option is out of range",
    "LLC0108": "golden vectors cannot be read",
    "LLC0109": "a plan option is out of range",
    "LLC0201": "the model source cannot be found or read",
    "LLC0202": "a checkpoint file is a git-lfs pointer",
    "LLC0203": "a checkpoint file is truncated",
    "LLC0204": "a safetensors file is damaged",
    "LLC0205": "a shard of the checkpoint is missing",
    "LLC0206": "a weight is missing from the checkpoint",
    "LLC0207": "the checkpoint holds a weight that the model has no place for",
    "LLC0208": "the shape of a weight differs from the config",
    "LLC0209": "the stored type of a weight is not supported",
    "LLC0210": "the checkpoint is in a format that is not read",
    "LLC0211": "not a GGUF file of a supported version",
    "LLC0212": "the metadata of a GGUF file is damaged or incomplete",
    "LLC0213": "the tensor table of a GGUF file is damaged",
    "LLC0214": "a text or JSON file of the checkpoint is damaged",
    "LLC0215": "a preset carries no weights",
    "LLC0216": "the embedded model is not installed",
    "LLC0217": "rows outside a weight were asked for (a bug in llamac)",
    "LLC0218": "random weights cannot be made for this source",
    "LLC0219": "a weight holds values that are not finite",
    "LLC0220": "a torch file is damaged",
    "LLC0221": "the pickle of a torch file asks for more than tensors",
    "LLC0222": "the quantization of the checkpoint is not supported",
    "LLC0223": "the shards of a checkpoint do not belong together",
    "LLC0224": "a quantized weight contradicts its config",
    "LLC0301": "the architecture is not supported",
    "LLC0302": "a key of the model config is missing",
    "LLC0303": "a value of the model config is wrong",
    "LLC0304": "values of the model config contradict each other",
    "LLC0305": "the rope_type is not supported",
    "LLC0306": "the activation is not supported",
    "LLC0307": "biases are not supported",
    "LLC0308": "a config key changes the model in a way that is not supported",
    "LLC0309": "unknown preset",
    "LLC0310": "the dtype is not supported",
    "LLC0311": "torch is not installed",
    "LLC0312": "this cannot be captured",
    "LLC0313": "torch.export failed on the module",
    "LLC0314": "the module has an op outside the supported set",
    "LLC0315": "the module uses an op or a tensor in a form that has no place in a Llama",
    "LLC0316": "the exported program is not one step of one sequence",
    "LLC0317": "a size is no sum of products of tokens and past",
    "LLC0318": "the module is not built as a Llama",
    "LLC0319": "the factory of --from torch cannot be used",
    "LLC0401": "malformed dimension expression",
    "LLC0402": "ill-typed op",
    "LLC0403": "malformed graph",
    "LLC0404": "IR text does not parse",
    "LLC0405": "weight has no data",
    "LLC0406": "interpreter input does not fit",
    "LLC0501": "a fusion fired an unexpected number of times",
    "LLC0502": "unknown pass or pass option",
    "LLC0503": "pass at the wrong level",
    "LLC0504": "pass left a malformed graph",
    "LLC0505": "the graph is not in the form that a pass needs",
    "LLC0506": "no kernel for a weight",
    "LLC0507": "a pass changes what the model computes",
    "LLC0508": "diagnostics differ from the expected ones",
    "LLC0509": "outside passes cannot be loaded",
    "LLC0510": "there is no failure to reduce",
    "LLC0511": "a repro cannot be read",
    "LLC0600": "the compiler, or its C compiler, is not installed",
    "LLC0601": "the C compiler has another version than the pinned one",
    "LLC0602": "generated code does not compile",
    "LLC0603": "unknown target",
    "LLC0604": "no target fits this machine",
    "LLC0605": "no code for an op of the graph",
    "LLC0607": "Triton, the compiler of GPU kernels, is not installed",
    "LLC0608": "Triton has another version than the pinned one",
    "LLC0609": "there is no such GPU kernel or instruction set",
    "LLC0610": "a GPU kernel does not compile",
    "LLC0611": "the GPU does not multiply weights of this type",
    "LLC0612": "the model does not fit the memory of the GPU",
    "LLC0613": "a target cannot be taken out of the artifact",
    "LLC0614": "this llamac cannot add code to the artifact",
    "LLC0615": "the stored weights cannot be had exactly in another layout",
    "LLC0616": "the model cannot be divided among so many ranks",
    "LLC0617": "targets of an artifact that divide the model differently",
    "LLC0701": "the artifact cannot be written there",
    "LLC0702": "the disk is full",
    "LLC0703": "the artifact writer was used wrongly (a bug in llamac)",
    "LLC0704": "the artifact cannot be opened",
    "LLC0705": "the file is not a llamac artifact",
    "LLC0706": "the artifact is a git-lfs pointer",
    "LLC0707": "the artifact is truncated",
    "LLC0708": "the structure of the artifact is damaged",
    "LLC0709": "the manifest of the artifact is damaged",
    "LLC0710": "the artifact was made by a newer llamac",
    "LLC0711": "a key of the manifest is missing or wrong",
    "LLC0712": "bytes of the artifact differ from their hash",
    "LLC0713": "the artifact has no such member",
    "LLC0714": "the launch plan of a GPU target is malformed",
    "LLC0715": "no bucket of the launch plan fits the step",
    "LLC0800": "no code in the artifact fits this machine",
    "LLC0801": "the artifact has no such target",
    "LLC0802": "the manifest lacks what the runtime needs",
    "LLC0803": "the artifact's code could not be loaded",
    "LLC0804": "the artifact's code speaks another native interface",
    "LLC0805": "the compiled model could not be created",
    "LLC0806": "the compiled model refused a step",
    "LLC0807": "memory for the arena or the KV cache could not be reserved",
    "LLC0808": "out of KV cache pages",
    "LLC0809": "the prompt is longer than the context",
    "LLC0810": "the prompt is empty",
    "LLC0811": "generation option out of range",
    "LLC0812": "token id outside the vocabulary",
    "LLC0813": "the artifact has no tokenizer",
    "LLC0814": "the artifact has no chat template",
    "LLC0815": "the model or sequence is closed",
    "LLC0816": "the context asked for is larger than the model's",
    "LLC0817": "the golden vectors disagree",
    "LLC0818": "a profile is being taken already",
    "LLC0819": "the process was forked after the model was loaded",
    "LLC0820": "two texts in one sequence at a time",
    "LLC0830": "Pillow is not installed",
    "LLC0831": "an image cannot be read",
    "LLC0832": "an image is too large",
    "LLC0833": "an image file holds several frames",
    "LLC0834": "the number of images differs from their places in the prompt",
    "LLC0835": "the prompt holds image patches of its own",
    "LLC0836": "the model has no such grid of tiles",
    "LLC0837": "the vocabulary lacks the tokens of images",
    "LLC0838": "the model takes no pictures",
    "LLC0839": "more pictures than there is memory for",
    "LLC0840": "the draft does not fit the model",
    "LLC0841": "bad speculation option",
    "LLC0850": "sampling option out of range",
    "LLC0851": "unknown sampling option",
    "LLC0852": "bad stop string",
    "LLC0853": "the logits are no distribution",
    "LLC0860": "the library of a GPU's driver cannot be loaded",
    "LLC0861": "cuda-bindings is not installed",
    "LLC0862": "there is no such GPU",
    "LLC0863": "no code in the artifact fits this GPU",
    "LLC0864": "a GPU's driver refused a call",
    "LLC0865": "the driver of a GPU is too old",
    "LLC0866": "a GPU has too little memory",
    "LLC0867": "code for GPUs cannot do this",
    "LLC0868": "the ranks of a divided model have lost one another",
    "LLC0869": "GPUs cannot be brought together",
    "LLC0901": "unknown kind of tokenizer",
    "LLC0902": "a library for text is not installed",
    "LLC0903": "a tokenizer file is malformed",
    "LLC0904": "unknown pre-tokenizer of a GGUF vocabulary",
    "LLC0905": "this form of tokenizer.json is not supported",
    "LLC0910": "the chat template does not parse",
    "LLC0911": "the chat template failed on this conversation",
    "LLC0912": "the chat template exceeds its limits",
    "LLC0913": "the chat template tried to leave its sandbox",
    "LLC0914": "the conversation is malformed",
    "LLC0915": "the chat format is unknown, or not that of this tokenizer",
    "LLC0916": "the tools are malformed, or this generation has none",
    "LLC0920": "unknown form of an export",
    "LLC0921": "an export did not pass its check",
    "LLC0922": "something is in the place of an export",
    "LLC0923": "a form of an export cannot hold this",
    "LLC0924": "unknown option of an export",
    "LLC0925": "an export cannot be written there",
    "LLC0930": "a library of ONNX is not installed",
    "LLC0931": "an op has no form in ONNX",
    "LLC0932": "the model has a part that ONNX has no place for",
    "LLC0934": "onnxruntime-genai needs what the source does not say",
    "LLC0935": "an ONNX op is not imported",
    "LLC0936": "an ONNX file is damaged",
    "LLC0937": "the ONNX model is no step of a Llama",
    "LLC0938": "ONNX Runtime is not installed, or refuses a model",
    "LLC0939": "a device of another system cannot do this",
    "LLC0940": "TVM is not installed",
    "LLC0941": "TVM has another version than the code is built with",
    "LLC0942": "an op has no rule for TVM",
    "LLC0943": "TVM's code cannot do this here",
    "LLC0944": "TVM refused the code",
    "LLC0945": "a model has no form in GGUF",
    "LLC0946": "a tokenizer has no form in GGUF",
    "LLC0947": "a weight has no form in GGUF",
    "LLC0948": "the library that writes GGUF is not installed",
    "LLC0950": "a value of an export's option cannot be used",
    "LLC0951": "a form of an export cannot say this of the model",
    "LLC0952": "a tokenizer cannot be written in the form of an export",
    "LLC0953": "a scheme of an export, or a scale of the source, does not fit",
    "LLC0954": "another system's library cannot read an export",
    "LLC0955": "a library that PyTorch's adapters need is not there",
    "LLC0956": "an artifact behind transformers cannot do this",
    "LLC0957": "torch.compile handed over what llamac does not compile",
    "LLC0958": "compiled code and torch module differ",
    "LLC0959": "a folder of compiled code cannot be trusted",
}
"""Code -> one-line title. `docs/error-codes.md` is generated from this table and a test keeps the two equal."""

LONGEST_NAME = 200
"""A longer one is nobody's slip of the pen, and comparing it takes memory in proportion."""


class LlamacError(Exception):
    """A failure with a code of `CODES`, the model-level name it concerns, the reason, and what to do next.

    Printed as `LLC0203 layers.17.mlp.gate: the reason. Next: the next step`.
    """

    def __init__(self, code: str, where: str, reason: str, hint: str = "") -> None:
        if code not in CODES:
            raise KeyError(f"error code {code} is not in llamac.errors.CODES")
        self.code = code
        self.where = where
        self.reason = reason
        self.hint = hint
        super().__init__(self.message())

    def message(self) -> str:
        """The one-line form that the command line prints."""
        reason = self.reason.rstrip(".")
        tail = f". Next: {self.hint.rstrip('.')}" if self.hint else ""
        return printable(f"{self.code} {self.where}: {reason}{tail}")

    def to_json(self) -> dict[str, str]:
        """The machine-readable form that `--json` prints."""
        return {"code": self.code, "where": self.where, "reason": self.reason, "next": self.hint}


def printable(text: str) -> str:
    """The text with escapes for what would steer a terminal or end a line: messages quote files nobody need trust."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """What to add to a message: "(did you mean 'x'?)" for the closest candidate, nothing when none is close."""
    if len(name) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
