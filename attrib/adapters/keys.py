"""What a config may say. A key is understood, or known not to matter, or its dictionary is refused.

A config is what its library computes by: a key that attrib passed over could change every latent. So each format names
the keys that it understands, this module those that say how a dictionary was trained, on what, or by whom, and any other
is refused with its value. The lists are the fields that the libraries' own config classes have had, in all versions.
"""

from collections.abc import Collection, Mapping
from textwrap import shorten
from typing import Any

from attrib.core.types import FormatError, UnsupportedError

_TRAINING = """
    act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient b_dec_init_method
    buffer_size_gb cached_activations_path checkpoint_path compile_llm compile_sae context_size dataset_path dataset_trust_remote_code
    dead_feature_estimation_method dead_feature_threshold dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm
    decoder_init_norm decoder_orthogonal_init device disable_concat_sequences dtype eval_batch_size_prompts eval_every_n_wandb_logs
    exclude_special_tokens expansion_factor feature_reinit_scale feature_sampling_method feature_sampling_window finetuning_method
    finetuning_tokens from_pretrained_path hook_eval hook_layer hook_point_eval hook_point_layer init_encoder_as_decoder_transpose
    is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale
    l0_coefficient l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode llm_device log_activations_store_to_wandb
    log_optimizer_state_to_wandb log_to_wandb log_weights_to_wandb logger lp_norm lr lr_decay_steps lr_end lr_scheduler_name
    lr_warm_up_steps matryoshka_widths model_class_name model_from_pretrained_kwargs model_kwargs mse_loss_normalization
    n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints n_eval_batches n_eval_seqs n_restart_cycles name neuronpedia_id
    noise_scale normalize_sae_decoder output_path pre_act_loss_coefficient prefetch_llm_batches prepend_bos resample_batches resume
    resume_from_checkpoint run_name sae_compilation_mode sae_lens_training_version sae_lens_version save_final_checkpoint
    scale_sparsity_penalty_by_decoder_norm seed seqpos_slice sequence_separator_token shuffle_buffer_size sparsity store_batch_size
    store_batch_size_prompts streaming target_l0 tokens_per_buffer topk_threshold_lr total_training_steps total_training_tokens
    train_batch_size train_batch_size_tokens training_tokens use_cached_activations use_chat_formatting use_ghost_grads
    use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency wandb_project
"""
SAE_LENS = frozenset(_TRAINING.split())

SPARSIFY = frozenset({"expansion_factor", "normalize_decoder", "multi_topk", "hookpoint", "dtype"})
"""`normalize_decoder` was done when it was trained, and `multi_topk` is a loss."""

CIRCUIT_TRACER = frozenset({"scan", "repo_id", "revision", "subfolder", "dtype", "lazy_encoder", "lazy_decoder"})

GEMMA_SCOPE_2 = frozenset({"width", "l0", "type"})


_THEIR_TRAINING = """
    is_sparse_connection n_shuffles_final n_shuffles_in_entire_dir n_shuffles_with_last_section shuffle_every_n_buffers
    sparse_connection_l1_coeff sparse_connection_sae_path sparse_connection_use_W_enc use_tqdm
"""
TRANSCODER_CIRCUITS = SAE_LENS | frozenset(_THEIR_TRAINING.split())
"""A sparse connection is one more loss."""


def check_keys(config: Mapping[str, Any], understood: Collection[str], ignored: Collection[str], what: str) -> None:
    """Raises UnsupportedError for a key that is neither understood nor known not to matter, with its value."""
    others = [f"{key}={shorten(repr(value), 60)}" for key, value in config.items() if key not in understood and key not in ignored]
    if others:
        raise UnsupportedError(
            f"dictionary {what}: {', '.join(others[:3])} in its config{' and more' if len(others) > 3 else ''}, which attrib does not know "
            "and will not pass over. Where it changes nothing that is computed, take it out of the config."
        )


def check_sizes(config: Mapping[str, Any], found: Mapping[str, int], beside: str, what: str) -> None:
    """Raises FormatError where a config states another size than the tensors have; one that is left out, or null, states none."""
    for key, size in found.items():
        if (said := config.get(key)) is not None and (isinstance(said, bool) or said != size):
            raise FormatError(f"dictionary {what}: {key}={said!r} in its config, but {beside}.")


def flag(config: Mapping[str, Any], key: str, what: str) -> bool:
    """A switch of a config; left out, or null, it is off. Raises FormatError for what is no switch."""
    if not isinstance(value := config.get(key), bool | None):
        raise FormatError(f"dictionary {what}: {key}={value!r}; expected true or false.")
    return bool(value)
