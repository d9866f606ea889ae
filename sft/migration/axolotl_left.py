"""Keys of axolotl's that nothing here stands for, and keys that need not be carried over."""

from __future__ import annotations

from sft.migration.mapping import Key, idle, lost

LEFT: tuple[Key, ...] = (
    *lost(
        "trl vllm ebft num_labels center_rewards_coefficient precompute_ref_log_probs",
        "only supervised fine-tuning is done here",
    ),
    *lost("selective_checkpointing layer_offloading", "see gradient_checkpointing_every and activation_offload"),
    *lost(
        "experts_implementation ple_cpu_offload quantize_moe_experts llama4_linearized_experts gptq use_onebitllms",
        "the model is taken as it is",
    ),
    *lost(
        "large_head_attention gemma4_hybrid_attn_impl cls_model_config processor_kwargs "
        "model_quantization_config_kwargs",
        "the model is taken as it is",
    ),
    *lost(
        "lr_quadratic_warmup lr_div_factor adam_epsilon2 adam_beta3 torchdistx_path",
        "the optimizer is AdamW, its schedule one of three",
    ),
    *lost(
        "dynamic_checkpoint",
        "a run saves when it is told to stop (docs/recovery.md), and every save_steps steps",
    ),
    *lost("deepcompile torch_compile_options", "each decoder layer is compiled by inductor, as it is by default"),
    *lost(
        "eaft_alpha eaft_k pretraining_sample_concatenation",
        "the loss is cross-entropy, computed in tiles",
        1.0,
        20,
    ),
    *lost("freeze_mm_modules max_prompt_len fp8_enable_fsdp_float8_all_gather", "there is nothing like it", True),
    *idle(
        "bench_dataset bench_split tokenizer_use_mistral_common tokenizer_save_jinja_files is_preprocess "
        "preprocess_iterable",
        "the trainer's own way",
    ),
    *idle(
        "sample_packing_mp_start_method pretrain_multipack_buffer_size pretrain_multipack_attn "
        "streaming_multipack_buffer_size",
        "packing needs no hint",
    ),
    *idle(
        "flex_attn_compile_kwargs flash_optimum sdpa_varlen tiled_mlp_use_original_mlp",
        "the kernels are the trainer's own",
    ),
    *idle(
        "total_supervised_tokens axolotl_config_path num_generation_samples merge_method "
        "loraplus_lr_embedding hf_mlflow_log_artifacts "
        "resources_per_worker",
        "the trainer's own way",
    ),
    *lost("pretraining_dataset", "raw text does not say who speaks; rows must hold turns"),
    *lost("lora_model_dir", "training begins with new adapters; export --merge makes a model to begin with"),
    *lost(
        "lora_modules_to_save lora_target_parameters lora_rank_pattern lora_alpha_pattern",
        "adapters are all alike, on linear layers",
    ),
    *lost(
        "lora_fan_in_fan_out peft peft_layers_to_transform peft_layers_pattern peft_layer_replication",
        "adapters are all alike, on linear layers",
    ),
    *lost(
        "peft_init_lora_weights peft_trainable_token_indices loraplus_lr_ratio relora",
        "adapters are LoRA, DoRA or rsLoRA, one learning rate for all",
        True,
    ),
    *lost(
        "unfrozen_parameters embedding_lr embedding_lr_scale lr_groups cosine_min_lr_ratio cosine_constant_lr_ratio",
        "all weights have one learning rate, which falls to zero",
    ),
    *lost(
        "tokens added_tokens_overrides",
        "no token is added. Save the tokenizer with it, and name that: tokenizer_name",
    ),
    *lost("eot_tokens", "what ends a turn is found in the chat template"),
    *lost(
        "default_system_message",
        "system_prompt replaces the system message of every row; a default is the template's",
    ),
    *lost("batch_size", "rows per step follow from the number of ranks; train_batch_size sets them"),
    *lost(
        "revision_of_model overrides_of_model_config overrides_of_model_kwargs model_quantization_config "
        "reinit_weights",
        "the model is taken as it is",
    ),
    *lost("fp8 fp8_config float16 qat quantization", "there is bfloat16, where the device has it, and float32"),
    *lost("tensor_parallel_size dp_replicate_size", "see fsdp, fsdp_shard_size, sequence_parallel_size", 1),
    *lost("dataset_exact_deduplication", "rows that repeat are counted by `python -m sft audit`, not taken out"),
    *lost("min_sample_len dataset_shard_num dataset_shard_idx skip_prepare_dataset", "every row is taken"),
    *lost("eval_sequence_len", "it is max_length, as for training"),
    *lost("curriculum_sampling sample_packing_sequentially", "each epoch is shuffled"),
    *lost(
        "trainer_cls use_ray device_map max_memory gpu_memory_limit",
        "`python -m launch` starts ranks, one for each device",
    ),
    *lost(
        "use_eaft chunked_cross_entropy_num_chunks use_pose streaming",
        "the loss is cross-entropy, computed in tiles",
    ),
    *lost("bnb_config_kwargs", "four bits are NF4, with the scales in eight bits"),
    *lost("tiled_mlp tiled_mlp_num_shards", "mlp_tile_tokens says how many tokens make a tile"),
    *lost("auto_resume_from_checkpoints", "a run goes on from its newest checkpoint by itself", True),
    *lost(
        "unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_cross_entropy_loss",
        "the kernels are the trainer's own",
    ),
    *idle(
        "model_type tokenizer_type processor_type base_model_config tokenizer_use_fast tokenizer_legacy type_of_model",
        "it follows from the model",
    ),
    *idle(
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model is_falcon_derived_model",
        "it follows from the model",
    ),
    *idle("strict low_cpu_mem_usage lora_on_cpu experimental_skip_move_to_device save_safetensors", "so it is here"),
    *idle(
        "dataset_prepared_path dataset_keep_in_memory num_dataset_shards_to_save push_dataset_to_hub",
        "encoded data is kept in dataset_cache_dir",
    ),
    *idle("pad_to_sequence_len pad_to_multiple_of batch_flattening eval_sample_packing", "there is no padding"),
    *idle(
        "sample_packing_group_size sample_packing_bin_size sample_packing_eff_est total_num_tokens "
        "multipack_real_batches",
        "packing needs no hint",
    ),
    *idle("shuffle_merged_datasets shuffle_before_merging_datasets", "each epoch is shuffled"),
    *idle(
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel flash_attn_cross_entropy "
        "flash_attn_fuse_mlp",
        "the kernels are the trainer's own",
    ),
    *idle("chunked_cross_entropy unsloth_rms_norm cut_cross_entropy", "the loss is computed in tiles in any case"),
    *idle(
        "gc_steps gc_collect_steps fsdp_version fsdp_final_state_dict_type ring_attn_func heads_k_stride",
        "the engine sets it",
    ),
    *idle(
        "use_tensorboard include_tokens_per_second include_tkps wandb_entity wandb_watch wandb_log_model "
        "wandb_run_id wandb_mode",
        "TensorBoard and training_log.json have all; wandb reads its own environment",
    ),
    *idle(
        "mean_resizing_embeddings shrink_embeddings resize_token_embeddings_to_32x embeddings_skip_upcast",
        "the vocabulary grows to the tokenizer's, and never shrinks",
    ),
    *idle(
        "do_causal_lm_eval do_bench_eval eval_causal_lm_metrics eval_table_size eval_max_new_tokens generate_samples",
        "`python -m sft evaluate` asks the model",
    ),
    *idle(
        "debug device ddp world_size profiler_steps profiler_steps_start save_first_step hf_use_auth_token "
        "merge_lora bfloat16 float32 fix_untrained_tokens",
        "the trainer's own way",
    ),
    *idle(
        "qlora_sharded_model_loading loss_watchdog_threshold loss_watchdog_patience use_kernels",
        "the trainer's own way",
    ),
)
