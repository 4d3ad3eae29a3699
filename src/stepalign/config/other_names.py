"""The words of other trainers (TRL, verl, OpenRLHF, transformers) for our keys, by the last part of a key."""

from __future__ import annotations

_WORDS = {
    "model.path": "model_name_or_path model_name name_or_path model_id pretrained_model_name_or_path pretrain",
    "model.dtype": "torch_dtype bf16 fp16 precision",
    "model.lora": "use_peft use_lora peft_config",
    "model.lora.r": "lora_r lora_rank",
    "model.lora.alpha": "lora_alpha",
    "model.lora.targets": "lora_target_modules target_modules",
    "model.gradient_checkpointing": "enable_gradient_checkpointing activation_checkpointing",
    "data.train": "dataset_name dataset_config dataset_train_split dataset train_dataset train_files train_data "
    "prompt_data",
    "data.test": "eval_dataset dataset_test_split val_files test_files eval_data test_dataset",
    "data.columns": "prompt_key answer_key input_key label_key question_key dataset_text_field",
    "data.grader": "reward_funcs reward_model reward_function custom_reward_function reward_fn",
    "data.max_train": "max_train_samples max_samples",
    "data.max_test": "max_eval_samples",
    "prompts.system": "system_prompt",
    "prompts.student": "prompt_template",
    "prompts.student_chat_options": "chat_template_kwargs apply_chat_template_kwargs",
    "prompts.max_teacher_prompt_length": "max_prompt_length max_reprompt_len",
    "sampling.num_generations": "num_generations group_size rollout_n n_samples_per_prompt num_return_sequences n",
    "sampling.max_completion_length": "max_new_tokens max_tokens max_completion_length max_response_length max_length "
    "max_seq_length generate_max_len",
    "sampling.temperature": "temperature",
    "sampling.engine": "use_vllm vllm_mode use_sglang",
    "sampling.base_urls": "vllm_server_base_url vllm_server_host vllm_server_port",
    "sampling.stop": "stop stop_strings stop_sequences",
    "training.learning_rate": "lr learning_rate actor_learning_rate",
    "training.lr_scheduler": "lr_scheduler_type",
    "training.warmup_steps": "warmup_ratio lr_warmup_ratio lr_warmup_steps",
    "training.max_steps": "num_train_epochs total_epochs num_epochs epochs total_training_steps",
    "training.problems_per_step": "batch_size train_batch_size gradient_accumulation_steps generation_batch_size "
    "rollout_batch_size global_batch_size",
    "training.updates_per_batch": "num_iterations steps_per_generation ppo_epochs ppo_mini_batch_size",
    "training.max_micro_batch_tokens": "per_device_train_batch_size per_device_eval_batch_size micro_batch_size "
    "micro_train_batch_size ppo_micro_batch_size_per_gpu ppo_max_token_len_per_gpu",
    "training.max_grad_norm": "grad_clip max_norm clip_grad",
    "training.save_steps": "save_freq save_strategy save_interval",
    "training.report_to": "wandb use_wandb logger log_with",
    "training.project": "project_name wandb_project",
    "training.run_name": "experiment_name wandb_run_name",
    "training.seed": "seed data_seed",
    "training.rank_timeout": "ddp_timeout nccl_timeout",
    "evaluation.eval_steps": "test_freq eval_strategy evaluation_strategy eval_interval",
    "evaluation.at_start": "eval_on_start val_before_train",
    "evaluation.num_samples": "num_generations_eval n_samples_eval",
    "objective.beta": "kl_coef kl_beta kl_loss_coef init_kl_coef",
    "objective.epsilon": "clip_ratio clip_ratio_low cliprange clip_eps epsilon_low",
    "objective.epsilon_high": "clip_ratio_high clip_eps_high",
    "objective.loss_type": "loss_agg_mode",
    "objective.divergence": "distillation_alpha full_logit_distillation lmbda",
    "objective.importance_clip": "importance_sampling_cap vllm_importance_sampling_cap "
    "vllm_importance_sampling_correction distillation_is_clip",
    "objective.top_k": "distillation_topk",
    "objective.teacher.weights": "teacher_regularization sync_ref_model",
    "objective.teacher.ema_decay": "ref_ema_decay teacher_update_rate ref_model_mixup_alpha",
    "objective.compiled": "torch_compile use_liger_kernel use_liger_loss",
    "condition": "adv_estimator advantage_estimator",
    # no key of ours: what to do instead
    "--out names the folder of a run": "output_dir logging_dir",
    "--resume continues a run": "resume_from_checkpoint",
    "every step and every rollout is recorded in the run's folder": "logging_steps log_completions logging_strategy",
    "completions are drawn from the whole distribution; sampling.temperature alone changes it": "top_p top_k min_p "
    "repetition_penalty presence_penalty frequency_penalty generation_kwargs do_sample",
    "the optimizer is AdamW with betas of 0.9 and 0.999": "optim adam_beta1 adam_beta2 adam_epsilon",
    "weights are loaded in the number format of model.dtype": "load_in_4bit load_in_8bit quantization_config",
    "adapters and models are trained without dropout": "lora_dropout disable_dropout",
    "attention and packing follow from device and model": "attn_implementation packing padding_free",
    "torchrun starts several ranks: docs/scale.md": "deepspeed fsdp fsdp_config zero_stage",
    "an option of the server: stepalign serve, docs/scale.md": "vllm_gpu_memory_utilization vllm_tensor_parallel_size "
    "gpu_memory_utilization tensor_parallel_size tensor_model_parallel_size vllm_max_model_length",
    "final/ is in Hugging Face layout and can be uploaded as it is": "push_to_hub hub_model_id hub_strategy",
    "one grader gives one score: data.grader": "reward_weights",
    "there is no bonus for entropy; guards.entropy_floor watches it": "entropy_coeff entropy_coef",
    "a completion that is cut is graded as it is; guards.truncated watches their share": "mask_truncated_completions "
    "overlong_filter",
    "a ratio is of one token: objective.epsilon clips it": "importance_sampling_level delta",
}
OTHER_NAMES = {word: meaning for meaning, found in _WORDS.items() for word in found.split()}
"""Word -> our key, or a sentence where we have none."""
