// The process of one actor: started by a node agent, holds one instance of one class, and ends with
// it.
#ifndef MOB_ACTOR_WORKER_H
#define MOB_ACTOR_WORKER_H

// `mobula actor-worker --control=FD --node-ip=IP --node-id=HEX --worker-id=HEX --port=N`
// On FD, a socket to the agent, it says "PORT n\n" once it can be called and "EXIT code why\n" when
// it ends by itself; the end of that socket is the end of the process.
int mob_actor_worker_main(int argc, char **argv);

#endif
