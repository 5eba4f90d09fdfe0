// A tensor train and sparse entries as they lie in a variant's extent. Mirrored by
// cuda/tensor_train.py and cuda/records.py.
#pragma once

#include "bias.cuh"
#include "eight.cuh"

// One core met by a state [outer, inputs, inner], which becomes [outer, outputs, inner].
struct TrainStage {
  int32_t outer, inputs, outputs, inner;
};

// Where an element of what a stage writes comes from.
struct StagePlace {
  int32_t outer, output, inner;

  DEVICE StagePlace(const TrainStage& stage, int32_t element)
      : outer(element / stage.inner / stage.outputs),
        output(element / stage.inner % stage.outputs),
        inner(element % stage.inner) {}
};

// y[offset + o] += (T x)[o] + S[o / rows_per_step] sum_i (value[i] - zero) x[column[i]] + bias[o]
// over the entries i of row o. T is two stages: x -> state -> outputs.
struct TensorTrainPart {
  const void* first;         // [first_stage.outputs][first_stride], zeros beyond the inputs
  const void* last;          // [last_stage.outputs][last_stage.inputs]
  const int32_t* row_start;  // [outputs + 1]
  const uint16_t* column;    // ascending within a row
  const void* value;         // bytes or f16
  const uint16_t* step;      // f16
  Bias bias;
  int32_t offset, outputs, inputs;
  TrainStage first_stage, last_stage;
  int32_t state;         // elements between the stages; 0: there is no train
  int32_t ranks;         // terms of an element of T
  int32_t first_stride;  // a multiple of 8
  int32_t lanes;         // of a warp that share an element of the state: a power of two
  int32_t elements;      // of the state that an item computes
  int32_t rows_per_step;
  int32_t is_coded;  // values are bytes
  float zero, gain;
  int32_t unused;
};

DEVICE float entry_value(const TensorTrainPart& part, int32_t entry) {
  const float value = part.is_coded
                          ? static_cast<float>(static_cast<const uint8_t*>(part.value)[entry])
                          : float_of_f16(static_cast<const uint16_t*>(part.value)[entry]);
  return value - part.zero;
}

DEVICE float entry_scale(const TensorTrainPart& part, int32_t output) {
  return float_of_f16(part.step[output / part.rows_per_step]) * part.gain;
}
