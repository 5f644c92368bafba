package appfile

import (
	"errors"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// parseTOML reads a document. Its problem, if any, is a *problem.
func parseTOML(b []byte) (*table, error) {
	var all map[string]any
	if err := toml.Unmarshal(b, &all); err != nil { // finds what is not TOML, and keys given twice
		p := &problem{pos: pos{1, 1}, text: "this is not TOML: " + err.Error()}
		if d, ok := errors.AsType[*toml.DecodeError](err); ok {
			p.pos.line, p.pos.column = d.Position()
			p.text = "this is not TOML: " + strings.TrimPrefix(d.Error(), "toml: ")
		}
		return nil, p
	}
	var p unstable.Parser
	p.Reset(b)
	root := newTable(pos{1, 1})
	at := root
	for p.NextExpression() {
		e := p.Expression()
		keys := keysOf(&p, e)
		switch e.Kind {
		case unstable.KeyValue:
			t := at.descend(keys[:len(keys)-1])
			last := keys[len(keys)-1]
			t.set(last.name, tomlValue(&p, e.Value(), last.pos))
		case unstable.Table:
			at = root.descend(keys)
		case unstable.ArrayTable:
			last := keys[len(keys)-1]
			at = newTable(last.pos)
			t := root.descend(keys[:len(keys)-1])
			v := t.vals[last.name]
			if v == nil {
				v = &value{pos: last.pos, kind: kindList}
				t.set(last.name, v)
			}
			v.list = append(v.list, &value{pos: last.pos, kind: kindTable, table: at})
		default: // comments
		}
	}
	if err := p.Error(); err != nil {
		return nil, &problem{pos: pos{1, 1}, text: "this is not TOML: " + err.Error()}
	}
	return root, nil
}

type key struct {
	name string
	pos  pos
}

func keysOf(p *unstable.Parser, e *unstable.Node) []key {
	switch e.Kind {
	case unstable.KeyValue, unstable.Table, unstable.ArrayTable:
	default:
		return nil
	}
	var out []key
	for it := e.Key(); it.Next(); {
		n := it.Node()
		at := p.Shape(n.Raw).Start
		out = append(out, key{string(n.Data), pos{at.Line, at.Column}})
	}
	return out
}

// descend is the table under t that the keys name, made where it is missing. In an array of tables it
// is the last one.
func (t *table) descend(keys []key) *table {
	for _, k := range keys {
		v := t.vals[k.name]
		if v != nil && v.table == nil && len(v.list) > 0 {
			v = v.list[len(v.list)-1]
		}
		if v == nil || v.table == nil {
			v = &value{pos: k.pos, kind: kindTable, table: newTable(k.pos)}
			t.set(k.name, v)
		}
		t = v.table
	}
	return t
}

func tomlValue(p *unstable.Parser, n *unstable.Node, at pos) *value {
	v := &value{pos: at, text: string(n.Data)}
	switch n.Kind {
	case unstable.String:
		v.kind = kindString
	case unstable.Integer:
		v.kind = kindInt
	case unstable.Float:
		v.kind = kindFloat
	case unstable.Bool:
		v.kind = kindBool
	case unstable.Array:
		v.kind = kindList
		for it := n.Children(); it.Next(); {
			v.list = append(v.list, tomlValue(p, it.Node(), at))
		}
	case unstable.InlineTable:
		v.kind, v.table = kindTable, newTable(at)
		for it := n.Children(); it.Next(); {
			e := it.Node()
			keys := keysOf(p, e)
			if len(keys) == 0 {
				continue
			}
			last := keys[len(keys)-1]
			v.table.descend(keys[:len(keys)-1]).set(last.name, tomlValue(p, e.Value(), last.pos))
		}
	default: // dates and times
	}
	return v
}
