package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/volant-edge/volant"
)

// record is the constraint that *T is a record, so that callers name T alone.
type record[T any] interface {
	*T
	volant.Record
}

// newOf returns an empty record of a kind. Of a kind this binary does not know it has the head alone;
// the rest of it is kept as unknown fields.
func newOf(kind volant.Kind) volant.Record {
	switch kind {
	case volant.KindOrg:
		return new(volant.Org)
	case volant.KindApp:
		return new(volant.App)
	case volant.KindRelease:
		return new(volant.Release)
	case volant.KindMachine:
		return new(volant.Machine)
	case volant.KindAddress:
		return new(volant.Address)
	case volant.KindToken:
		return new(volant.Token)
	case volant.KindNode:
		return new(volant.Node)
	case volant.KindAppName:
		return new(volant.AppName)
	case volant.KindSecrets:
		return new(volant.Secrets)
	case volant.KindCert:
		return new(volant.Certificate)
	case volant.KindLease:
		return new(volant.Lease)
	case volant.KindVersions:
		return new(volant.Versions)
	case volant.KindImage:
		return new(volant.Image)
	case volant.KindPlace:
		return new(volant.Place)
	case volant.KindJoin:
		return new(volant.JoinToken)
	default:
		return new(bare)
	}
}

// forKey returns an empty record of the kind that a key names.
func forKey(key string) volant.Record {
	kind, _, _ := strings.Cut(key, "/")
	return newOf(volant.Kind(kind))
}

type bare struct{ volant.Meta }

// kindOf is the kind that a record's Go type stands for, or "" if it stands for none.
func kindOf(r volant.Record) volant.Kind {
	switch r.(type) {
	case *volant.Org:
		return volant.KindOrg
	case *volant.App:
		return volant.KindApp
	case *volant.Release:
		return volant.KindRelease
	case *volant.Machine:
		return volant.KindMachine
	case *volant.Address:
		return volant.KindAddress
	case *volant.Token:
		return volant.KindToken
	case *volant.Node:
		return volant.KindNode
	case *volant.AppName:
		return volant.KindAppName
	case *volant.Secrets:
		return volant.KindSecrets
	case *volant.Certificate:
		return volant.KindCert
	case *volant.Lease:
		return volant.KindLease
	case *volant.Versions:
		return volant.KindVersions
	case *volant.Image:
		return volant.KindImage
	case *volant.Place:
		return volant.KindPlace
	case *volant.JoinToken:
		return volant.KindJoin
	}
	return ""
}

// Decode reads the record of an entry. It refuses one that is damaged, that stands under a wrong key,
// or whose schema is newer than this binary.
func Decode[T any, P record[T]](key string, value []byte) (*T, error) {
	rec := P(new(T))
	if err := decode(key, value, rec); err != nil {
		return nil, err
	}
	return (*T)(rec), nil
}

// DecodeAny reads the record of an entry as the type of its kind: *volant.App and so on.
func DecodeAny(key string, value []byte) (volant.Record, error) {
	rec := forKey(key)
	if err := decode(key, value, rec); err != nil {
		return nil, err
	}
	return rec, nil
}

// IsRecord says whether a key has the form of a record's key: kind/app/id. Keys of another form are
// no records: terms, and what belongs to the engine.
func IsRecord(key string) bool {
	return strings.Count(key, "/") == 2 && !strings.HasPrefix(key, TermPrefix)
}

func decode(key string, value []byte, rec volant.Record) error {
	if len(value) > MaxValue {
		return volant.Invalidf("record %s has %d bytes: at most %d", key, len(value), MaxValue)
	}
	// The head first: a newer major may have changed the type of any other field.
	var head struct {
		Kind   volant.Kind `json:"kind"`
		Schema int         `json:"schema"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return volant.Invalidf("record %s is no JSON object: %v", key, err)
	}
	if head.Schema > volant.SchemaMajor {
		return volant.Errorf(volant.ErrPrecondition, "record %s has schema %d and this volant reads up to %d", key, head.Schema, volant.SchemaMajor).
			WithRemedy("install the newer volant on this node")
	}
	if head.Schema < 1 {
		return volant.Invalidf("record %s has schema %d: there is none below 1", key, head.Schema)
	}
	if err := json.Unmarshal(value, rec); err != nil {
		return volant.Invalidf("record %s: %v", key, err)
	}
	return checkHead(key, rec)
}

func checkHead(key string, rec volant.Record) error {
	h := rec.Head()
	if want := kindOf(rec); want != "" && h.Kind != want {
		return volant.Invalidf("record %s is of kind %q, not %q", key, h.Kind, want)
	}
	for _, part := range []string{string(h.Kind), string(h.App), h.ID} {
		if strings.Contains(part, "/") {
			return volant.Invalidf("record %s: %q has a slash", key, part)
		}
	}
	if h.Kind == "" || h.ID == "" {
		return volant.Invalidf("record %s lacks its kind or ID", key)
	}
	if h.Key() != key {
		return volant.Invalidf("record %s stands under the key %s", h.Key(), key)
	}
	return CheckKey(key)
}

// encode writes a record which changed from old, keeping what raw has beyond old's known fields.
func encode(raw []byte, old, rec volant.Record) ([]byte, error) {
	key := rec.Head().Key()
	if err := checkHead(key, rec); err != nil {
		return nil, err
	}
	after, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("write record %s: %w", key, err)
	}
	if raw != nil {
		before, err := json.Marshal(old)
		if err != nil {
			return nil, fmt.Errorf("write record %s: %w", key, err)
		}
		if after, err = keepUnknown(raw, before, after, func(b []byte) bool { return sameRecord(b, after, rec) }); err != nil {
			return nil, fmt.Errorf("write record %s: %w", key, err)
		}
	}
	if len(after) > MaxValue {
		return nil, volant.Invalidf("record %s has %d bytes: at most %d", key, len(after), MaxValue)
	}
	return after, nil
}

// sameRecord says whether b reads back as the record whose plain form is want.
func sameRecord(b, want []byte, rec volant.Record) bool {
	got := newLike(rec)
	if json.Unmarshal(b, got) != nil {
		return false
	}
	again, err := json.Marshal(got)
	return err == nil && bytes.Equal(again, want)
}

// Key is the key of a record of type T.
func Key[T any, P record[T]](app volant.AppID, id string) string {
	return volant.RecordKey(kindOf(P(new(T))), app, id)
}
