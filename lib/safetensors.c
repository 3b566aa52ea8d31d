#define SAFETENSORS_IMPLEMENTATION
#include "safetensors.h"
