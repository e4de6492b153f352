// The `vllm` command: `vllm serve MODEL [options]`, `vllm complete`, `vllm chat`, `vllm --version`.
#ifndef MOB_API_VLLM_H
#define MOB_API_VLLM_H

// Returns the process's exit code. argv[0] is "vllm".
int mob_vllm_main(int argc, char **argv);

#endif
