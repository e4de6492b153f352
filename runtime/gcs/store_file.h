// The file store's layout on disk, and where its tests reach in.
//
// gcs.log: a header, then frames. A frame is what one fdatasync made durable: changes in order,
// under one checksum. Its seed is the file's id and the frame's offset, so that nothing left over
// from another file or place passes for a frame. Numbers are little-endian.
//
//     header   8 bytes "MOBGCS1\n", u64 id of the file, u64 XXH3 of the 16 bytes before
//     frame    u32 MOB__FRAME_MAGIC, u32 0, u64 length of the payload, u64 XXH3 of the payload
//     change   u8 1 (put) or 2 (delete), u8 table, u16 0, u32 key length, u32 value length, key,
//              value
//
// A file is only ever made whole: gcs.log.new is written, synced and renamed.
#ifndef MOB_GCS_STORE_FILE_H
#define MOB_GCS_STORE_FILE_H

#include <stdint.h>

#include "runtime/gcs/store.h"

#define MOB__STORE_FILE_NAME "gcs.log"
#define MOB__STORE_FILE_NEW "gcs.log.new"
#define MOB__STORE_FILE_LOCK "gcs.lock"
#define MOB__FRAME_MAGIC 0x4672bd4du
enum { MOB__FILE_HEADER = 24, MOB__FRAME_HEADER = 24, MOB__CHANGE_HEADER = 12 };

// Called before every system call that changes the disk, on any thread; what it returns, unless 0,
// is the errno with which that call fails. `data` and `len` are those of a write.
typedef int (*mob__store_file_step_fn)(const char *call, int fd, const void *data, size_t len);
extern mob__store_file_step_fn mob__store_file_step; // NULL outside of tests
// The log is written anew when it is larger than this and more than half of it is dead.
extern uint64_t mob__store_file_compact_min;

#endif
