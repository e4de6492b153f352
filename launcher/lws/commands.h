// The sub-commands; each gets argv[0] as its own name and returns the exit status.
#ifndef MOB_LWS_COMMANDS_H
#define MOB_LWS_COMMANDS_H

int mob__lws_up(int argc, char **argv);
int mob__lws_status(int argc, char **argv);
int mob__lws_logs(int argc, char **argv);
int mob__lws_scale(int argc, char **argv);
int mob__lws_fault(int argc, char **argv);
int mob__lws_exec(int argc, char **argv);
int mob__lws_down(int argc, char **argv);

#endif
