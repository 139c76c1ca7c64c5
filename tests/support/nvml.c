// A libnvidia-ml of cards that there are not. The energy of a card grows by so many kWh at each look at it.
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
enum { NO_COUNTER = -1, NO_MIG = -1, SOON = 2 };

typedef struct { const char *uuid; int kwh, mig; unsigned long long counted; } Card;

static Card cards[] = {
  {"GPU-a", 1, 0, 7},
  {"GPU-b", 2, NO_MIG, 0},
  {"GPU-pascal", NO_COUNTER, NO_MIG, 0},
  {"GPU-divided", 1, 1, 0},
  {"GPU-soon", 4, SOON, 0},
};

int nvmlInitWithFlags(unsigned flags) { return getenv("NVML_FAILS") ? 9 : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetHandleByUUID(const char *uuid, Card **found) {
  for (size_t i = 0; i < sizeof cards / sizeof *cards; i++)
    if (!strcmp(cards[i].uuid, uuid)) return *found = &cards[i], SUCCESS;
  return NOT_FOUND;
}

int nvmlDeviceGetMigMode(Card *card, unsigned *now, unsigned *later) {
  if (card->mig == NO_MIG) return NOT_SUPPORTED;
  return *now = card->mig == 1, *later = card->mig != 0, SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Card *card, unsigned long long *millijoules) {
  if (card->kwh == NO_COUNTER) return NOT_SUPPORTED;
  return *millijoules = card->counted += 3600000000ULL * card->kwh, SUCCESS;
}
