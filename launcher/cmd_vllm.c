// The `vllm` command.
#include "engine/api/vllm.h"

#include <stdio.h>
#include <string.h>

#include "engine/api/client.h"
#include "engine/api/serve.h"
#include "engine/api/version.h"

static const char usage[] = "usage: vllm [-h] [-v] {serve,complete,chat} ...\n";
static const char serve_usage[] = "usage: vllm serve <model_tag> [options]\n";

static int serve_help(void) {
  fputs(serve_usage, stdout);
  fputs("\nServes the model in directory <model_tag> over the OpenAI API. In a group that "
        "`ray_init.sh` or `ray start`\n"
        "began, its stages run on the group's nodes; without one, in this process.\n\n"
        "  -h, --help                      Show this text and end.\n"
        "  --config FILE                   YAML file of options, a flat map; the command line goes "
        "before it.\n",
        stdout);
  mob_options_help(mob__serve_table, mob__serve_table_len, stdout);
  fputs(
      "\nLong names may be written with `_` or `-`, and values as `--name value` or "
      "`--name=value`.\n\n"
      "Environment: VLLM_API_KEY, VLLM_HOST_IP, VLLM_LOGGING_LEVEL, VLLM_PP_LAYER_PARTITION=a,b,\n"
      "VLLM_ALLOW_LONG_MAX_MODEL_LEN, VLLM_KEEP_ALIVE_ON_ENGINE_DEATH, "
      "VLLM_HTTP_TIMEOUT_KEEP_ALIVE,\n"
      "RAY_ADDRESS=HOST:PORT (the group's GCS; default: the cluster of this machine, if one "
      "runs).\n\n"
      "Exit codes: 0 drained after a signal; 1 refused at start; 2 wrong usage; 69 lost while "
      "starting;\n"
      "70 the group was lost; 75 the group was not complete in time.\n",
      stdout);
  return 0;
}

static int serve_main(int argc, char **argv) {
  mob_serve_options_t options;
  bool help = false;
  mob_status status = mob__serve_parse(argc, argv, &options, &help);
  if (status != MOB_OK) {
    bool wrong_usage = status == MOB_E_INVALID;
    if (wrong_usage) fputs(serve_usage, stderr);
    fprintf(stderr, "vllm serve: error: %s\n", mob_errmsg());
    if (wrong_usage) fputs("`vllm serve --help` lists the options.\n", stderr);
    return wrong_usage ? 2 : 1;
  }
  int code = help ? serve_help() : mob__serve(&options);
  mob__serve_clear(&options);
  return code;
}

int mob_vllm_main(int argc, char **argv) {
  const char *command = argc > 1 ? argv[1] : "";
  if (strcmp(command, "-v") == 0 || strcmp(command, "--version") == 0) {
    puts(MOB_VLLM_VERSION);
    return 0;
  }
  if (strcmp(command, "serve") == 0) return serve_main(argc - 2, argv + 2);
  if (strcmp(command, "chat") == 0) return mob__client_main(argc - 2, argv + 2, true);
  if (strcmp(command, "complete") == 0) return mob__client_main(argc - 2, argv + 2, false);
  if (strcmp(command, "-h") == 0 || strcmp(command, "--help") == 0) {
    fputs(usage, stdout);
    puts("\nvLLM CLI\n\n"
         "  serve       Start the OpenAI-compatible API server: vllm serve <model_tag> [options]\n"
         "  complete    Generate text completions via a running API server\n"
         "  chat        Generate chat completions via a running API server\n"
         "  -v          Show the version and end");
    return 0;
  }
  fputs(usage, stderr);
  if (!*command)
    fputs("vllm: error: the following arguments are required: subparser\n", stderr);
  else {
    fprintf(stderr,
            "vllm: error: argument subparser: invalid choice: '%s' (choose from 'serve', "
            "'complete', 'chat')\n",
            command);
  }
  return 2;
}
