// Text of tables and numbers in the shapes that Ray's command line gives them.
#ifndef MOB_NODE_TABLE_H
#define MOB_NODE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"

// A float as Python's repr() writes it: "4.0", "0.001", "1e+16".
char *mob_py_float(double value, char out[40]);

// Bytes as `ray status` writes them: "0B", "31.97GiB".
char *mob_py_memory(double bytes, char out[40]);

// Rows of `columns` cells each, row after row; a cell may be NULL (empty) and may have several
// lines. The layout is tabulate's "plain": a row index, two spaces between columns, columns that
// hold integers alone to the right, no blanks at line ends.
void mob_table(mob_buf_t *out, const char *const *headers, size_t columns, char *const *cells,
               size_t rows);

#endif
