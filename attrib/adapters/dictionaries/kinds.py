"""Every kind of dictionary that attrib knows by name: how it is computed, or why not. docs/dictionaries.md is made from this."""

from typing import NamedTuple

from attrib.dictionaries.dictionary import Rule


class DictionaryKind(NamedTuple):
    """One kind of one library; `rule` is None where attrib refuses it, and `remark` then says why."""

    library: str
    name: str
    rule: Rule | None
    writes: str
    remark: str


HERE, ELSEWHERE, LATER = "where it reads", "`hook_name_out`", "`mlp_out` of its own and all later layers"

GATED = "gate and magnitude folded into one JumpReLU, exactly"

KINDS = (
    DictionaryKind("sae-lens", "standard", "relu", HERE, ""),
    DictionaryKind("sae-lens", "gated", "jumprelu", HERE, GATED),
    DictionaryKind("sae-lens", "topk", "topk", HERE, "`rescale_acts_by_decoder_norm` folded into encoder and decoder"),
    DictionaryKind("sae-lens", "abstopk", "abstopk", HERE, "latents of either sign; norms folded as for topk"),
    DictionaryKind("sae-lens", "jumprelu", "jumprelu", HERE, "what batchtopk and matryoshka_batchtopk are saved as for inference"),
    DictionaryKind("sae-lens", "transcoder", "relu", ELSEWHERE, "normalises what it reads, not what it writes"),
    DictionaryKind("sae-lens", "skip_transcoder", "relu", ELSEWHERE, "`x @ W_skip.T` of the input as read"),
    DictionaryKind("sae-lens", "jumprelu_transcoder", "jumprelu", ELSEWHERE, ""),
    DictionaryKind("sae-lens", "jumprelu_skip_transcoder", "jumprelu", ELSEWHERE, "`x @ W_skip.T` of the input as read"),
    DictionaryKind("sae-lens", "batchtopk", None, HERE, "a training checkpoint: its k is shared by a batch; use `save_inference_model`"),
    DictionaryKind(
        "sae-lens", "matryoshka_batchtopk", None, HERE, "a training checkpoint: its k is shared by a batch; use `save_inference_model`"
    ),
    DictionaryKind("sae-lens", "temporal", None, HERE, "its codes attend over the prompt: not a function of one position's activation"),
    DictionaryKind(
        "sae-lens", "matching_pursuit", None, HERE, "it picks latents one after another from what the last ones left: not one encoder pass"
    ),
    DictionaryKind("circuit-tracer", "transcoder_set", "relu", "`feature_output_hook`", "one dictionary per layer"),
    DictionaryKind(
        "circuit-tracer", "transcoder_set with thresholds", "jumprelu", "`feature_output_hook`", "`jump` where a threshold is negative"
    ),
    DictionaryKind(
        "circuit-tracer", "transcoder_set with activation topk", "rawtopk", "`feature_output_hook`", "k of the config or a tensor"
    ),
    DictionaryKind("circuit-tracer", "cross_layer_transcoder", "relu", LATER, "one dictionary per layer, its decoders side by side"),
    DictionaryKind("circuit-tracer", "cross_layer_transcoder with thresholds", "jumprelu", LATER, "`jump` where a threshold is negative"),
    DictionaryKind("sparsify", "topk", "topk", HERE, "`skip_connection` as `x @ W_skip.T`"),
    DictionaryKind("sparsify", "topk with transcode", "topk", "the hookpoint's output", "reads the hookpoint's input"),
    DictionaryKind("sparsify", "groupmax", None, HERE, "one latent wins in each group of latents, a rule that attrib has not"),
    DictionaryKind("sparsify", "topk with signed", None, HERE, "a rule of old versions that attrib has not"),
    DictionaryKind("Gemma Scope", "params.npz", "jumprelu", HERE, "residual stream, `mlp_out`, `z`"),
    DictionaryKind("Gemma Scope", "params.npz of a transcoder", "jumprelu", "`mlp_out`", "reads `ln2.hook_normalized`: see `after_gain`"),
    DictionaryKind("Gemma Scope 2", "params.safetensors", "jumprelu", HERE, "residual stream, `mlp_out`, `z`"),
    DictionaryKind(
        "Gemma Scope 2", "params.safetensors of a transcoder", "jumprelu", "`mlp_out`", "`x @ affine_skip_connection` where it has one"
    ),
    DictionaryKind("Gemma Scope", "params.npz of the embedding", None, HERE, "the embedding is no site of attrib"),
    DictionaryKind("transcoder_circuits", "SAE", "relu", HERE, "`.pt`, `.pkl`, `.pkl.gz`: read as data, nothing in them is run"),
    DictionaryKind("transcoder_circuits", "transcoder", "relu", "`out_hook_point`", "the input's b_dec folded into b_enc"),
    DictionaryKind("transcoder_circuits", "hook_point_head_index", None, HERE, "a dictionary of a single head"),
    DictionaryKind("tensors", "relu", "relu", "`writes=`", "`attrib.adapters.from_tensors`"),
    DictionaryKind("tensors", "jumprelu", "jumprelu", "`writes=`", "with `threshold=`"),
    DictionaryKind("tensors", "jump", "jump", "`writes=`", "above a threshold that may be negative"),
    DictionaryKind("tensors", "topk", "topk", "`writes=`", "with `k=`"),
    DictionaryKind("tensors", "rawtopk", "rawtopk", "`writes=`", "with `k=`; latents of either sign"),
    DictionaryKind("tensors", "abstopk", "abstopk", "`writes=`", "with `k=`; latents of either sign"),
    DictionaryKind("tensors", "gated", "jumprelu", "`writes=`", GATED),
)

NORMALISATIONS = {
    "none": "as it is",
    "layer_norm": "centred, over its deviation + 1e-5; decoding multiplies back without the 1e-5; differentiated",
    "constant_norm_rescale": "scaled to the norm √d_in; decoding scales back; differentiated",
    "expected_average_only_in": "times the factor of the activation_scaler.json beside it, folded into the weights; **refused** without",
    "covariance_whitening": "whitened by the activation_whitening.safetensors beside it, folded into the weights; **refused** without",
}


def kind_of(library: str, name: str) -> DictionaryKind | None:
    """The entry of one kind, or None for a name that attrib does not know."""
    return next((kind for kind in KINDS if (kind.library, kind.name) == (library, name)), None)


def supported(library: str) -> list[str]:
    """Names of the kinds of a library that attrib computes."""
    return [kind.name for kind in KINDS if kind.library == library and kind.rule]
