// `mobula status`.
#ifndef MOB_LAUNCHER_CMD_STATUS_H
#define MOB_LAUNCHER_CMD_STATUS_H

int mob_status_main(int argc, char **argv); // argv[0] is the sub-command's name

#endif
