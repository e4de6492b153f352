// What the `vllm` front answers for its version: the release whose behaviour it has.
#ifndef MOB_API_VERSION_H
#define MOB_API_VERSION_H

#define MOB_VLLM_VERSION "0.7.2"

#endif
