// The local LeaderWorkerSet runner: `mobula lws up|status|logs|scale|fault|exec|down`.
#ifndef MOB_LAUNCHER_LWS_LWS_H
#define MOB_LAUNCHER_LWS_LWS_H

// argv[0] is "lws". Returns the exit status: 0 done, 1 failed, 2 wrong usage.
int mob_lws_main(int argc, char **argv);

#endif
