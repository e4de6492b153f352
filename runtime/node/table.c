#include "runtime/node/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

char *mob_py_float(double value, char out[40]) {
  if (isnan(value)) return strcpy(out, "nan");
  if (isinf(value)) return strcpy(out, value < 0 ? "-inf" : "inf");
  int precision = 1;
  do {
    snprintf(out, 40, "%.*e", precision - 1, value);
  } while (strtod(out, NULL) != value && ++precision <= 17);
  int exponent = atoi(strchr(out, 'e') + 1);
  // Python writes exponents below -4 and from 16 on.
  if (exponent >= -4 && exponent < 16) {
    int decimals = precision - 1 - exponent;
    snprintf(out, 40, "%.*f", decimals < 1 ? 1 : decimals, value);
  }
  return out;
}

char *mob_py_memory(double bytes, char out[40]) {
  static const char *const units[] = {"TiB", "GiB", "MiB", "KiB"};
  double size = 1099511627776.0;
  for (size_t i = 0; i < MOB_LEN(units); i++, size /= 1024) {
    if (bytes >= size) {
      snprintf(out, 40, "%.2f%s", bytes / size, units[i]);
      return out;
    }
  }
  snprintf(out, 40, "%lldB", (long long)bytes);
  return out;
}

// Columns are counted in characters, not in bytes.
static size_t width_of(const char *text, size_t len) {
  size_t width = 0;
  for (size_t i = 0; i < len; i++) width += ((unsigned char)text[i] & 0xc0) != 0x80;
  return width;
}

static bool is_integer(const char *text) {
  if (*text == '-' || *text == '+') text++;
  size_t digits = strspn(text, "0123456789");
  return digits && !text[digits];
}

typedef struct column {
  size_t width;
  bool right;
} column_t;

static void put_cell(mob_buf_t *out, const column_t *column, const char *text, size_t len) {
  size_t pad = column->width - width_of(text, len);
  if (column->right) mob_buf_printf(out, "%*s", (int)pad, "");
  mob_buf_append(out, text, len);
  if (!column->right) mob_buf_printf(out, "%*s", (int)pad, "");
}

static void end_line(mob_buf_t *out) {
  while (out->len && out->data[out->len - 1] == ' ') out->len--;
  mob_buf_putc(out, '\n');
}

static const char *cell_line(const char *cell, size_t line, size_t *len) {
  for (; line && cell; line--) {
    cell = strchr(cell, '\n');
    if (cell) cell++;
  }
  *len = cell ? strcspn(cell, "\n") : 0;
  return cell ? cell : "";
}

static column_t measure(const char *header, char *const *cells, size_t stride, size_t rows) {
  column_t column = {width_of(header, strlen(header)) + 2, false};
  size_t integers = 0, filled = 0;
  for (size_t r = 0; r < rows; r++) {
    const char *cell = cells[r * stride];
    if (!cell) continue;
    filled++;
    integers += is_integer(cell);
    for (size_t line = 0;; line++) {
      size_t len;
      const char *text = cell_line(cell, line, &len);
      if (width_of(text, len) > column.width) column.width = width_of(text, len);
      if (!text[len]) break;
    }
  }
  column.right = filled && integers == filled;
  return column;
}

void mob_table(mob_buf_t *out, const char *const *headers, size_t columns, char *const *cells,
               size_t rows) {
  column_t *layout = MOB_NEW_ARRAY(column_t, columns + 1);
  char number[24];
  column_t index = {2, true};
  size_t digits = (size_t)snprintf(number, sizeof number, "%zu", rows ? rows - 1 : 0);
  if (digits > index.width) index.width = digits;
  for (size_t c = 0; c < columns; c++) layout[c] = measure(headers[c], cells + c, columns, rows);

  put_cell(out, &index, "", 0);
  for (size_t c = 0; c < columns; c++) {
    mob_buf_puts(out, "  ");
    put_cell(out, &layout[c], headers[c], strlen(headers[c]));
  }
  end_line(out);
  for (size_t r = 0; r < rows; r++) {
    bool more = true;
    for (size_t line = 0; more; line++) {
      more = false;
      snprintf(number, sizeof number, "%zu", r);
      put_cell(out, &index, number, line ? 0 : strlen(number));
      for (size_t c = 0; c < columns; c++) {
        const char *cell = cells[r * columns + c];
        size_t len;
        const char *text = cell_line(cell ? cell : "", line, &len);
        mob_buf_puts(out, "  ");
        put_cell(out, &layout[c], text, len);
        more = more || text[len] == '\n';
      }
      end_line(out);
    }
  }
  free(layout);
}
