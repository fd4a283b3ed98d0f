/* What charts compute: smoothing, lists of steps, finer parts put in. Pure functions of lists of numbers.
 *
 * A series is [steps, values]; a value is null where the run wrote what is no number.
 */

const WINDOWS = 400;

/** Values smoothed by a moving average whose weights fall off by the distance in steps.
 *
 * `amount` is 0 (as they are) to below 1, the weight kept from one point to the next; a series of more than 400 points
 * counts as 400 even ones, so that one amount looks alike for short, long and thinned series. The start is not pulled
 * towards zero.
 */
export function smoothed([steps, values], amount) {
  if (!(amount > 0) || steps.length < 2) return values;
  const unit = (steps[steps.length - 1] - steps[0]) / Math.min(WINDOWS, steps.length - 1);
  let sum = 0;
  let weight = 0;
  let before = null;
  return values.map((value, index) => {
    if (value === null || value === undefined) return value;
    const decay = before === null ? 0 : amount ** ((steps[index] - before) / unit);
    before = steps[index];
    sum = sum * decay + value;
    weight = weight * decay + 1;
    return sum / weight;
  });
}

/** [steps, values of each series at those steps, undefined where it has none]: new lists, since the series grow in place. */
export function align(columns) {
  if (columns.every(([at]) => at === columns[0][0])) return [columns[0][0].slice(), ...columns.map(([, values]) => values.slice())];
  const steps = allSteps(columns);
  const rows = columns.map(([at, values]) => {
    const row = new Array(steps.length);
    let place = 0;
    at.forEach((step, index) => {
      while (steps[place] < step) place += 1;
      row[place] = values[index];
    });
    return row;
  });
  return [steps, ...rows];
}

/** Every step at which one of the series has a value, ascending. */
export function allSteps(columns) {
  if (columns.length === 1) return columns[0][0].slice();
  return [...new Set(columns.flatMap(([at]) => at))].sort((a, b) => a - b);
}

/** First and last step of the series together, null where all are empty. */
export function extent(columns) {
  const ends = columns.filter(([at]) => at.length > 0).map(([at]) => [at[0], at[at.length - 1]]);
  return ends.length ? [Math.min(...ends.map(([first]) => first)), Math.max(...ends.map(([, last]) => last))] : null;
}

/** The series with its part between two steps replaced by a finer one. */
export function spliced([steps, values], [fineSteps, fineValues], first, last) {
  const low = steps.findIndex((step) => step >= first);
  const high = steps.findLastIndex((step) => step <= last);
  const begin = low < 0 ? steps.length : low;
  const end = Math.max(begin, high + 1);
  const inside = fineSteps.map((step, index) => [step, fineValues[index]]).filter(([step]) => step >= first && step <= last);
  // What came since the finer part was asked for stays as it is.
  const newest = inside.length ? inside[inside.length - 1][0] : -Infinity;
  const later = steps.slice(begin, end).map((step, index) => [step, values[begin + index]]).filter(([step]) => step > newest);
  const middle = inside.length ? [...inside, ...later] : steps.slice(begin, end).map((step, index) => [step, values[begin + index]]);
  return [
    [...steps.slice(0, begin), ...middle.map(([step]) => step), ...steps.slice(end)],
    [...values.slice(0, begin), ...middle.map(([, value]) => value), ...values.slice(end)],
  ];
}

/** The last value that there is. */
export function latest(values) {
  return values.findLast((value) => value !== undefined);
}

/** The value at an index, or the last one before it. */
export function nearest(values, index) {
  for (let at = Math.min(index, values.length - 1); at >= 0; at -= 1) if (values[at] !== undefined) return values[at];
  return undefined;
}

/** At most `most` of the items, evenly spread, both ends among them. */
export function evenly(items, most) {
  if (items.length <= most) return items;
  return Array.from({ length: most }, (_, index) => items[Math.round((index * (items.length - 1)) / (most - 1))]);
}

/** Round numbers on a logarithmic axis: powers of ten, of a short one also their halves and fifths, of a very short one even steps. */
export function logTicks(low, high) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) {
    const rough = ((high - low) / 4) * (1 - 1e-9);
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((lead) => lead * unit).find((size) => size >= rough);
    return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, index) => Number(((Math.ceil(low / step) + index) * step).toPrecision(12)));
  }
  const every = Math.max(1, Math.ceil(decades / 6));
  const leads = decades < 2.5 ? [1, 2, 5] : [1];
  const first = Math.floor(Math.log10(low));
  const powers = Array.from({ length: Math.ceil(decades) + 2 }, (_, index) => first + index).filter((power) => power % every === 0);
  return powers.flatMap((power) => leads.map((lead) => Number(`${lead}e${power}`))).filter((tick) => tick >= low && tick <= high);
}
