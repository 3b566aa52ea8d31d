#define SAFETENSORS_IMPLEMENTATION
#include "format/safetensors.h"
