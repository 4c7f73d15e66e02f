-- What the server knows of itself, for the people who look after it; and how it would run one of our reads.

do $$
begin
  -- Where Supabase has it too: nothing that it brings is in schema public.
  create schema if not exists extensions;
  create extension if not exists pg_stat_statements schema extensions;
exception when others then
  -- Without the right or the extension all else works, and server_statements says what to do.
  raise notice 'pg_stat_statements: %', sqlerrm;
end
$$;

-- Plans

create function read_plan(function text, arguments jsonb) returns text[]
language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
  asked pg_proc;
  part pg_proc;
  given text;
  line text;
  lines text[];
begin
  select p.* into asked from pg_proc p
  where p.proname = read_plan.function and p.pronamespace = 'public'::regnamespace and p.prokind = 'f' and p.proretset
    and p.provolatile <> 'v' and p.proowner = (select relowner from pg_class where oid = 'operators'::regclass);
  if not found then
    raise exception 'there is no read "%"', read_plan.function using errcode = 'PT404';
  end if;
  if asked.prolang <> (select oid from pg_language where lanname = 'sql') then
    return array['Its body is not one statement, so it has no plan of its own'];
  end if;
  for part in
    select p.* from pg_proc p
    where p.oid = asked.oid
      -- A figure within the figure, for arguments that are not known before it runs.
      or not p.proretset and p.prorettype = 'jsonb'::regtype and asked.prosrc ~ ('\m' || p.proname || '\(')
        and (p.pronamespace, p.proowner, p.prolang, p.provolatile)
          = (asked.pronamespace, asked.proowner, asked.prolang, asked.provolatile)
    order by p.oid <> asked.oid
  loop
    if lines is not null then
      lines := lines || format('In it, %s, whatever its arguments:', part.proname);
    end if;
    -- A row with the function's name stands for its parameters: in its body their names mean the same then.
    select string_agg(format('(%s)::%s as %I',
      case when read_plan.arguments ? n.name then quote_nullable(read_plan.arguments ->> n.name)
        else coalesce(pg_get_function_arg_default(part.oid, n.at::integer), 'null') end,
      format_type(part.proargtypes[n.at - 1], null), n.name), ', ')
    into given from unnest(part.proargnames[:part.pronargs]) with ordinality as n (name, at);
    for line in execute format('explain select * from (select %s %s) as %I, lateral (%s' || E'\n) as answer',
        given, case when part.oid <> asked.oid then 'offset 0' end, part.proname,
        regexp_replace(part.prosrc, '^\s*select demand\([^;]*;|;\s*$', '', 'g')) loop
      lines := lines || line;
    end loop;
  end loop;
  return lines;
end
$$;
comment on function read_plan is 'EXPLAIN of one of our reads, which is not run: what it does is not done, whatever is given';

-- Stable, as the reads are: Postgres lets no stable function explain, though that changes nothing.
create function explain_call(function text, arguments jsonb) returns table (line text)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  select unnest(read_plan(explain_call.function, explain_call.arguments));
$$;
comment on function explain_call is 'How the server would run one of our reads with these arguments now, line by line';

-- Statements

create function shown_statement(query text) returns text language sql immutable as
  $$ select left(regexp_replace(regexp_replace(query, '(''|\$([[:alpha:]_]\w*)?\$).*$', '...'), '\s+', ' ', 'g'), 300) $$;
comment on function shown_statement is 'Up to the first text that stands in it, which may be an e-mail or a password';

create function unseen() returns text
language sql stable security definer set search_path = public, pg_temp as $$
  select 'What others do is not shown: run grant pg_read_all_stats to ' || quote_ident(current_user)
  where not pg_has_role(current_user, 'pg_read_all_stats', 'usage')
$$;
comment on function unseen is 'How to let the owner of the schema see what everybody does; null where it does';

create function server_statements(size integer default 20) returns table (why text, statements jsonb)
language plpgsql stable security definer set search_path = public, pg_temp as $$
declare
  place text := (select extnamespace::regnamespace from pg_extension where extname = 'pg_stat_statements');
begin
  perform demand('viewer');
  begin
    return query execute format($q$
      with counted as (
        select p.proname::text as function, case when p.proname is null then shown_statement(s.query) end as text,
          sum(s.calls)::bigint as calls, sum(s.total_exec_time) / sum(s.calls) as mean_ms, max(s.max_exec_time) as max_ms,
          sum(s.total_exec_time) as total_ms, sum(s.rows)::bigint as rows
        from %s.pg_stat_statements s left join pg_proc p
          -- As our stores write it: select * from "name"(...), and PostgREST "public"."name"(...).
          on p.proname = (regexp_match(s.query, '(?:^select \* from |"public"\.)"(\w+)"\('))[1]
            and p.pronamespace = 'public'::regnamespace
        where s.dbid = (select oid from pg_database where datname = current_database())
          and s.toplevel and s.queryid is not null
        group by 1, 2),
      ranked as (
        select *, mean_ms >= 20 and calls >= 100 as slow, row_number() over (
          partition by function is null order by mean_ms >= 20 and calls >= 100 desc, total_ms desc) as rank
        from counted)
      select unseen(), coalesce(jsonb_agg(to_jsonb(r) - 'rank' order by r.total_ms desc), '[]')
      from ranked r where r.function is not null or r.rank <= $1$q$, coalesce(place, 'extensions')) using size;
  exception when object_not_in_prerequisite_state or undefined_table or insufficient_privilege then
    return query select format('Statements are not shown (%s): add pg_stat_statements to shared_preload_libraries, restart '
      'Postgres, and run create extension if not exists pg_stat_statements (Supabase: Database, Extensions)', sqlerrm),
      '[]'::jsonb;
  end;
end
$$;
comment on function server_statements is
  'What Postgres counted of each of our functions, and of the size slowest other statements, in milliseconds; slow as '
  'PgHero has it: 20 ms on average over 100 calls. why: how to see them (all)';

-- Activity

create function server_activity(at_least_seconds double precision default 60)
returns table (
  why text, max_connections integer, connections jsonb, running jsonb, blocked jsonb, bytes bigint,
  hit_share double precision, since timestamptz)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  with clients as (
    select pid, application_name as application, coalesce(state, 'not shown') as state, xact_start, datname,
      extract(epoch from clock_timestamp() - query_start) as seconds, shown_statement(query) as text,
      case when wait_event_type = 'Lock' then pg_blocking_pids(pid) else '{}' end as blockers
    from pg_stat_activity where backend_type = 'client backend'),
  here as (select c.* from clients c where c.datname = current_database())
  select unseen(), current_setting('max_connections')::integer,
    (select jsonb_object_agg(s.state, s.clients) from (select state, count(*) as clients from clients group by 1) s),
    (select coalesce(jsonb_agg(jsonb_build_object('pid', h.pid, 'application', h.application, 'state', h.state,
         'seconds', extract(epoch from clock_timestamp() - h.xact_start), 'text', h.text) order by h.xact_start), '[]')
       from here h where h.xact_start < clock_timestamp() - make_interval(secs => at_least_seconds)),
    (select coalesce(jsonb_agg(jsonb_build_object('pid', h.pid, 'application', h.application, 'state', h.state,
         'seconds', h.seconds, 'text', h.text, 'blocked_by',
         (select jsonb_agg(concat_ws(', ', b.pid, nullif(c.application, ''), c.state, c.text))
            -- It may be no client: autovacuum, or a prepared transaction.
            from unnest(h.blockers) as b (pid) left join clients c using (pid))) order by h.seconds desc), '[]')
       from here h where h.blockers <> '{}'),
    pg_database_size(d.datid), d.blks_hit::double precision / nullif(d.blks_hit + d.blks_read, 0), d.stats_reset
  from pg_stat_database d where d.datname = current_database();
$$;
comment on function server_activity is
  'Connections of the server by state; of this database: transactions that last so long, who waits for whose lock, '
  'size, and the share of pages that were in memory';

-- Tables and indexes

create function server_tables()
returns table (
  name text, bytes bigint, rows bigint, dead_share double precision, seq_scans bigint, index_scans bigint,
  hit_share double precision, bloated boolean, lacks_index boolean)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  select t.relname::text, pg_total_relation_size(t.relid), t.n_live_tup,
    t.n_dead_tup::double precision / greatest(t.n_live_tup + t.n_dead_tup, 1), t.seq_scan, coalesce(t.idx_scan, 0),
    io.heap_blks_hit::double precision / nullif(io.heap_blks_hit + io.heap_blks_read, 0),
    -- A fifth is when autovacuum should have come.
    t.n_dead_tup >= 10000 and t.n_dead_tup * 4 >= t.n_live_tup,
    t.n_live_tup >= 10000 and t.seq_scan >= 100 and t.seq_scan > coalesce(t.idx_scan, 0)
  from pg_stat_user_tables t join pg_statio_user_tables io using (relid)
  where t.schemaname = 'public' order by 2 desc, 1;
$$;
comment on function server_tables is
  'Our tables, the largest first: bytes with indexes, rows (estimated), share of dead rows (what of it is bloat), and scans';

create function server_indexes()
returns table (name text, table_name text, bytes bigint, scans bigint, covered_by text)
language sql stable security definer set search_path = public, pg_temp as $$
  select demand('viewer');
  with known as (
    select s.indexrelname::text as name, s.relname::text as table_name, s.indexrelid, s.relid, s.idx_scan, i.indisunique,
      i.indnatts, i.indkey::text || ' ' as keys, pg_get_expr(i.indpred, i.indrelid) as predicate,
      row(c.relam, i.indexprs) as kind, i.indclass::text || ' ' as classes, i.indoption::text || ' ' as options
    from pg_stat_user_indexes s join pg_index i using (indexrelid) join pg_class c on c.oid = s.indexrelid
    where s.schemaname = 'public' and i.indisvalid),
  judged as (
    select k.*, pg_relation_size(k.indexrelid) as bytes, (
      select min(o.name) from known o
      where o.relid = k.relid and o.indexrelid <> k.indexrelid and o.kind is not distinct from k.kind
        and o.predicate is not distinct from k.predicate
        -- Columns that are only included have a key, but neither class nor option.
        and starts_with(o.keys, k.keys) and starts_with(o.classes, k.classes) and starts_with(o.options, k.options)
        -- Of two that are the same, the younger is too much.
        and (o.indnatts > k.indnatts or o.indisunique or o.indexrelid < k.indexrelid)) as covered_by
    from known k where not k.indisunique)
  select j.name, j.table_name, j.bytes, j.idx_scan, j.covered_by from judged j
  where j.covered_by is not null or j.idx_scan = 0 and j.bytes > 1024 * 1024
    -- Else nobody has asked much yet.
    and (select sum(o.idx_scan) from known o where o.relid = j.relid) >= 1000
  order by j.bytes desc, j.name;
$$;
comment on function server_indexes is
  'Indexes that another one makes needless, and those of more than a megabyte that are not used while others of their table are';

-- Grants, as in 0010: nothing is anybody's unless it stands here

revoke all on function read_plan, explain_call, shown_statement, unseen, server_statements, server_activity,
  server_tables, server_indexes from public, anon, authenticated, service_role;
grant execute on function explain_call, server_statements, server_activity, server_tables, server_indexes to service_role;
