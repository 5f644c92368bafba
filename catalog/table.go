package catalog

import (
	"hash/maphash"
	"iter"

	"github.com/benbjohnson/immutable"
)

// table is a map which never changes: with returns another one, which shares most of it. The zero table
// is empty.
type table[K ~string, V any] struct{ m *immutable.Map[K, V] }

func (t table[K, V]) get(k K) (v V, ok bool) {
	if t.m == nil {
		return v, false
	}
	return t.m.Get(k)
}

func (t table[K, V]) with(k K, v V) table[K, V] {
	m := t.m
	if m == nil {
		m = immutable.NewMap[K, V](hasher[K]{})
	}
	return table[K, V]{m.Set(k, v)}
}

func (t table[K, V]) without(k K) table[K, V] {
	if t.m == nil {
		return t
	}
	return table[K, V]{t.m.Delete(k)}
}

// all are the entries, in no order.
func (t table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if t.m == nil {
			return
		}
		for it := t.m.Iterator(); !it.Done(); {
			if k, v, ok := it.Next(); ok && !yield(k, v) {
				return
			}
		}
	}
}

// seed makes hashes differ from process to process, since names are chosen by users.
var seed = maphash.MakeSeed()

type hasher[K ~string] struct{}

func (hasher[K]) Hash(k K) uint32   { h := maphash.String(seed, string(k)); return uint32(h ^ h>>32) }
func (hasher[K]) Equal(a, b K) bool { return a == b }
