package store

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"

	"github.com/volant-edge/volant"
)

// newLike returns an empty record of the same type.
func newLike(rec volant.Record) volant.Record {
	return reflect.New(reflect.TypeOf(rec).Elem()).Interface().(volant.Record)
}

// keepUnknown returns after with those fields of raw which neither before nor after knows, in every
// object: raw is what the store has, before is how this binary read it, after is what it wants to
// write. same must say whether a result still reads back as after does.
//
// Emptying a struct can make its whole object vanish from after, while raw has unknown fields in it.
// Those are kept where the result reads back the same, which it does not where the absence
// has a meaning: of a nil pointer, or a removed entry of a map.
func keepUnknown(raw, before, after []byte, same func([]byte) bool) ([]byte, error) {
	var trees [3]any
	for i, b := range [][]byte{raw, before, after} {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber() // numbers keep all their digits
		if err := d.Decode(&trees[i]); err != nil {
			return nil, err
		}
		if _, err := d.Token(); err != io.EOF {
			return nil, volant.Invalidf("more follows the record's JSON")
		}
	}
	for _, m := range []merger{{revive: true}, {}} {
		b, err := json.Marshal(m.merge(trees[0], trees[1], trees[2]))
		if err != nil {
			return nil, err
		}
		if !m.revive || same(b) {
			return b, nil
		}
	}
	return after, nil
}

type merger struct{ revive bool }

func (m merger) merge(raw, before, after any) any {
	switch a := after.(type) {
	case map[string]any:
		if r, ok := raw.(map[string]any); ok {
			b, _ := before.(map[string]any) // nil where before had none: everything in raw is unknown then
			return m.object(r, b, a)
		}
	case []any:
		r, ok1 := raw.([]any)
		b, ok2 := before.([]any)
		if ok1 && ok2 && len(r) == len(b) {
			return m.array(r, b, a)
		}
	}
	return after
}

func (m merger) object(raw, before, after map[string]any) map[string]any {
	out := make(map[string]any, len(after))
	for k, v := range after {
		out[k] = v
		if r, ok := raw[k]; ok {
			out[k] = m.merge(r, before[k], v)
		}
	}
	for k, r := range raw {
		if _, ok := after[k]; ok {
			continue
		}
		b, known := before[k]
		switch {
		case !known && !hasFold(before, k) && !hasFold(after, k):
			out[k] = r
		case known && m.revive:
			rest, ok := m.merge(r, b, map[string]any{}).(map[string]any)
			if ok && len(rest) > 0 {
				out[k] = rest
			}
		}
	}
	return out
}

// array gives each element of after the unknown fields of the element it was: the equal one of
// before, wherever it stood, else the one in its place if the length is the same.
func (m merger) array(raw, before, after []any) []any {
	out := make([]any, len(after))
	used := make([]bool, len(before))
	done := make([]bool, len(after))
	for i, a := range after {
		for _, j := range nearFirst(i, len(before)) {
			if !used[j] && reflect.DeepEqual(before[j], a) {
				out[i], used[j], done[i] = raw[j], true, true
				break
			}
		}
	}
	for i, a := range after {
		switch {
		case done[i]:
		case len(before) == len(after) && !used[i]:
			out[i] = m.merge(raw[i], before[i], a)
		default:
			out[i] = a
		}
	}
	return out
}

// nearFirst is 0 to n-1 with i first, so that an element which did not move matches itself.
func nearFirst(i, n int) []int {
	order := make([]int, 0, n)
	if i < n {
		order = append(order, i)
	}
	for j := range n {
		if j != i {
			order = append(order, j)
		}
	}
	return order
}

// hasFold says whether the object has the key in any case: encoding/json reads "Name" as "name".
func hasFold(o map[string]any, key string) bool {
	for k := range o {
		if strings.EqualFold(k, key) {
			return true
		}
	}
	return false
}
