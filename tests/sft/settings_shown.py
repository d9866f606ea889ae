"""The test that shows the effect of each setting. `test_every_setting` holds that all are there and name it."""

from __future__ import annotations

TESTS_OF: dict[str, dict[str, str]] = {
    "sft/test_two_forms.py": {
        "test_a_plain_file_runs_as_a_command_and_as_a_function": "model_name_or_path",
        "test_the_short_flags_run": "train_file per_device_train_batch_size gradient_accumulation_steps",
    },
    "sft/test_model_settings.py": {
        "test_one_of_every_so_many_layers_is_recomputed": (
            "model_config gradient_checkpointing gradient_checkpointing_every"
        ),
        "test_compiled_layers_train_alike_and_are_compiled_once_for_all_lengths": "compile",
        "test_liger_is_told_to_replace_all_but_the_losses": "liger",
        "test_other_kinds_of_adapters_are_trained_and_written": "lora.merge lora.dora lora.rslora",
    },
    "sft/test_tokenizer.py": {
        "test_a_bare_tokenizer_file_is_enough": "tokenizer_name chat_template_path",
    },
    "sft/test_every_setting.py": {
        "test_code_that_comes_with_a_model_runs_where_it_is_trusted": "trust_remote_code",
        "test_the_template_sees_its_variables": "template_kwargs",
        "test_rows_are_read_as_the_settings_say": "columns max_train_samples max_eval_samples",
        "test_rows_are_encoded_by_so_many_processes_into_that_folder": "dataset_num_proc dataset_cache_dir",
        "test_an_evaluation_takes_so_many_rows_at_a_time": "per_device_eval_batch_size",
        "test_half_precision_is_what_was_asked_for": "bf16 param_dtype save_dtype",
        "test_feed_forward_blocks_take_so_many_tokens_at_a_time": "mlp_tile_tokens",
        "test_collectives_wait_as_long_as_the_settings_say": "ddp_timeout",
        "test_adapters_are_those_of_the_settings": (
            "lora lora.enabled lora.r lora.alpha lora.dropout lora.target_modules"
        ),
        "test_weights_are_compared_every_so_many_steps": "parameter_check_steps",
        "test_so_many_checkpoints_are_kept": "save_total_limit",
    },
    "sft/test_attention.py": {
        "test_a_row_of_fixed_capacity_padded_rows_and_packed_rows_are_the_same": "attn_implementation",
    },
    "sft/test_training_outcomes.py": {
        "test_the_log_counts_steps_epochs_and_tokens": "eval_file max_steps logging_steps",
        "test_epochs_make_the_steps_and_a_part_of_one_is_rounded_up": "num_train_epochs",
        "test_the_same_settings_give_the_same_losses_and_another_seed_gives_others": "seed",
        "test_from_python_values_of_every_kind_win_over_the_file": "output_dir",
        "test_none_starts_anew_beside_checkpoints": "resume_from_checkpoint",
        "test_tensorboards_own_reader_finds_the_scalars_of_the_log": "report_to",
    },
    "sft/test_training.py": {
        "test_packing_truncation_sources_adapters_and_skipped_rows_go_together": (
            "max_length packing train_files on_bad_row"
        ),
        "test_the_learning_rate_rises_and_falls": "learning_rate",
        "test_early_stopping_writes_the_best_model": "eval_steps early_stopping_patience load_best_model_at_end",
        "test_a_run_learns_and_writes_everything": "save_steps",
    },
    "sft/test_truncation.py": {
        "test_failure_mode_18_every_trained_span_follows_its_whole_header": "truncation",
    },
    "sft/test_bad_rows.py": {
        "test_all_bad_rows_can_be_skipped_and_are_counted": "max_bad_rows",
    },
    "sft/test_inspect.py": {
        "test_weights_and_mask_settings_are_options": "train_on",
    },
    "sft/test_masking.py": {
        "test_a_turn_that_the_template_rewrites_later_is_trained_under_its_own_prompt": "history",
    },
    "sft/test_masking_hostile.py": {
        "test_such_a_turn_is_put_under_its_prompt_or_refused_where_the_settings_say_so": "prompt_mismatch",
    },
    "oracle/test_failure_modes_of_data.py": {
        "test_failure_mode_09_a_row_with_control_strings_is_refused_by_name_where_that_is_asked_for": (
            "special_tokens_in_data"
        ),
        "test_failure_mode_14_a_date_that_the_template_writes_is_named_and_can_be_pinned": "template_date",
    },
    "sft/test_optimize_prompt.py": {
        "test_training_takes_the_prompt_of_the_file": "system_prompt",
    },
    "sft/test_config_files.py": {
        "test_accumulation_follows_from_the_whole_batch": "train_batch_size",
        "test_processes_that_share_their_rows_count_once": "sequence_parallel_size",
    },
    "sft/test_optimizer_and_loss.py": {
        "test_the_line_falls_evenly_and_the_constant_not_at_all": "lr_scheduler_type",
        "test_the_share_of_warm_up_is_rounded_up_and_steps_win_over_it": "warmup_ratio warmup_steps",
        "test_only_trainable_matrices_are_decayed": "weight_decay",
        "test_without_decay_there_is_one_group_and_the_adam_settings_arrive": "adam_beta1 adam_beta2 adam_epsilon",
    },
    "sft/test_few_bits.py": {
        "test_a_run_in_eight_bits_learns_and_resumes": "optim",
        "test_adapters_train_on_weights_in_few_bits": "load_in_4bit load_in_8bit",
    },
    "sft/test_resume_identity.py": {
        "test_a_setting_that_is_named_may_change_and_takes_effect": "max_grad_norm resume_override",
        "test_changed_data_is_refused_with_both_hashes_until_it_is_accepted": "accept_data_change",
    },
    "sft/test_loss_spikes.py": {
        "test_without_the_setting_the_same_step_moves_them": "skip_loss_spikes",
        "test_more_spikes_in_a_row_than_are_left_out_end_the_run": "max_loss_spikes",
    },
    "sft/test_activation_offload.py": {
        "test_the_estimate_has_them_on_the_host": "activation_offload",
    },
    "ranks/test_export_of_engines.py": {
        "test_a_checkpoint_of_two_ranks_is_exported_without_running_it": "deepspeed fsdp",
    },
    "ranks/test_engines.py": {
        "test_state_shared_within_nodes_trains_as_state_that_every_rank_has": "fsdp_shard_size",
    },
    "launch/test_launch_settings.py": {
        "test_names": "run_name",
        "test_own_script_is_told_file_and_directory": "launch",
    },
    "sft/test_metering.py": {
        "test_a_profile_holds_the_steps_that_were_asked_for": "profile_steps",
        "test_a_run_logs_rates_and_phases": "matmul_tflops",
    },
}
"""File → test → the settings whose effect it shows; `lora.r` is r under lora."""

SHOWN = {
    setting: (file, test)
    for file, tests in TESTS_OF.items()
    for test, settings in tests.items()
    for setting in settings.split()
}
"""Setting → (file, test)."""
