// Run lengths of a mask, column by column, as COCO writes them in text: each a difference to the one but one before it.

export function encode(map, width, height, value) {
  const counts = [];
  let [inside, length] = [false, 0];
  for (let x = 0; x < width; x++) {
    for (let at = x; at < map.length; at += width) {
      if ((map[at] === value) !== inside) {
        counts.push(length);
        [inside, length] = [!inside, 0];
      }
      length += 1;
    }
  }
  counts.push(length);
  return counts.map((count, place) => letters(place > 2 ? count - counts[place - 2] : count)).join("");
}

function letters(rest) {
  let text = "";
  for (let more = true; more;) {
    const bits = rest & 31;
    rest >>= 5;
    more = rest !== (bits & 16 ? -1 : 0);
    text += String.fromCharCode(48 + (more ? bits | 32 : bits));
  }
  return text;
}

// Puts `value` into `map` wherever the mask is.
export function decode(text, map, width, height, value) {
  const counts = [];
  let [number, shift, place, inside] = [0, 0, 0, false];
  for (let i = 0; i < text.length; i++) {
    const bits = text.charCodeAt(i) - 48;
    number |= (bits & 31) << shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) number |= -1 << shift;
    counts.push(counts.length > 2 ? number + counts[counts.length - 2] : number);
    [number, shift] = [0, 0];
  }
  for (const count of counts) {
    if (inside) for (let at = place; at < place + count; at++) map[(at % height) * width + Math.floor(at / height)] = value;
    place += count;
    inside = !inside;
  }
}
