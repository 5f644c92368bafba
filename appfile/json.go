package appfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// parseJSON reads a document. Its problem, if any, is a *problem.
func parseJSON(b []byte) (*table, error) {
	r := &jsonReader{b: b, dec: json.NewDecoder(bytes.NewReader(b))}
	r.dec.UseNumber()
	v, err := r.value(0)
	if err == nil && v.table == nil {
		err = &problem{pos{1, 1}, "this is " + v.what() + ": write one object, such as {\"app\": \"web\"}"}
	}
	if err == nil {
		if _, more := r.dec.Token(); !errors.Is(more, io.EOF) {
			err = &problem{r.place(), "there is more after the object: write one only"}
		}
	}
	if err == nil {
		return v.table, nil
	}
	if p, ok := errors.AsType[*problem](err); ok {
		return nil, p
	}
	text := strings.TrimPrefix(err.Error(), "json: ")
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		text = "it ends too early"
	}
	p := &problem{r.place(), "this is not JSON: " + text}
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		p.pos = r.at(s.Offset)
	}
	return nil, p
}

type jsonReader struct {
	b   []byte
	dec *json.Decoder
}

// place is where the decoder will read on: past blanks, commas and colons.
func (r *jsonReader) place() pos {
	off := r.dec.InputOffset()
	for off < int64(len(r.b)) && bytes.IndexByte([]byte(" \t\r\n,:"), r.b[off]) >= 0 {
		off++
	}
	return r.at(off + 1)
}

// at is the place of byte n, counted from 1.
func (r *jsonReader) at(n int64) pos {
	before := r.b[:max(0, min(n-1, int64(len(r.b))))]
	return pos{bytes.Count(before, []byte("\n")) + 1, len(before) - bytes.LastIndexByte(before, '\n')}
}

func (r *jsonReader) value(depth int) (*value, error) {
	v := &value{pos: r.place()}
	if depth > maxDepth {
		return nil, &problem{v.pos, fmt.Sprintf("this lies over %d values deep", maxDepth)}
	}
	t, err := r.dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '[' {
			return r.list(v, depth)
		}
		return r.object(v, depth)
	case string:
		v.kind, v.text = kindString, t
	case json.Number:
		v.kind, v.text = kindInt, t.String()
		if strings.ContainsAny(v.text, ".eE") {
			v.kind = kindFloat
		}
	case bool:
		v.kind, v.text = kindBool, fmt.Sprint(t)
	default:
		v.text = "null"
	}
	return v, nil
}

func (r *jsonReader) list(v *value, depth int) (*value, error) {
	v.kind = kindList
	for r.dec.More() {
		e, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		v.list = append(v.list, e)
	}
	_, err := r.dec.Token()
	return v, err
}

func (r *jsonReader) object(v *value, depth int) (*value, error) {
	v.kind, v.table = kindTable, newTable(v.pos)
	for r.dec.More() {
		at := r.place()
		t, err := r.dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, &problem{at, "this is not JSON: a key is no string"}
		}
		if _, twice := v.table.vals[name]; twice {
			return nil, &problem{at, fmt.Sprintf("the key %q is given twice", name)}
		}
		e, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		e.pos = at
		if e.table != nil {
			e.table.pos = at
		}
		v.table.set(name, e)
	}
	_, err := r.dec.Token()
	return v, err
}
