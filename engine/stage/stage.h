// The actor class "mob.stage": one pipeline stage of an engine as a process of the cluster. The
// gateway's side is engine.h; what the two say to each other is proto/mobula/stage.proto.
#ifndef MOB_STAGE_STAGE_H
#define MOB_STAGE_STAGE_H

#define MOB_STAGE_CLASS "mob.stage"

// Makes the class known to this process; called before a worker's main loop starts.
void mob_stage_register(void);

#endif
