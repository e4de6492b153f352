// `vllm chat` and `vllm complete`: a terminal talking to a running API server.
#ifndef MOB_API_CLIENT_H
#define MOB_API_CLIENT_H

#include <stdbool.h>

int mob__client_main(int argc, char **argv, bool chat);

#endif
